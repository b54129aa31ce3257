"""Tables of the records of all projections, for a terminal and for markdown."""

from __future__ import annotations

from collections.abc import Iterable

from nxdi_svd_plugin.report.matrix import ADDED, MatrixRecord, percent
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS, LowRank, Side

WIDTH = 22
"""Characters of the widest cell, "14336 (99.9 % + 1.0 %)"."""


def layer_rows(matrices: Iterable[MatrixRecord]) -> list[list[str]]:
    """One row a layer: its number, the neurons that it keeps, and the cells of gate, up and down."""
    rows: dict[tuple[int, int], dict[str, str]] = {}
    for record in matrices:
        rows.setdefault((record.layer, record.width), {})[record.name] = record.cell()
    return [
        [str(layer), str(width), *(cells.get(name, "") for name in PROJECTIONS)]
        for (layer, width), cells in sorted(rows.items())
    ]


def layer_table(matrices: Iterable[MatrixRecord]) -> str:
    """`layer_rows` for a terminal."""
    rows = [["layer", "width", *PROJECTIONS], *layer_rows(matrices)]
    lines = [
        "  ".join([f"{layer:>5}  {width:>5}", *(f"{cell:>{WIDTH}}" for cell in cells)]) for layer, width, *cells in rows
    ]
    return "\n".join([f"{lines[0]}   rank (output error on the calibration text + what bfloat16 adds)", *lines[1:]])


def error_lines(matrices: Iterable[MatrixRecord]) -> list[str]:
    """What the errors of groups are; what a refit did; the worst rounding of the stored forms and the largest growth,
    and where. Nothing of what was not measured."""
    records = list(matrices)
    rounding = [(r.bf16_error, r) for r in records if r.bf16_error is not None]
    growth = [(r.growth, r) for r in records if r.growth is not None]
    lines = [*([ADDED] if any(map(_adds, records)) else []), *_fit_lines(records)]
    if rounding:
        error, worst = max(rounding, key=lambda found: found[0])
        lines.append(f"error that bfloat16 adds to an output: at most {percent(error, 2)} {_place(worst)}")
    if growth:
        largest, worst = max(growth, key=lambda found: found[0])
        lines.append(f"max abs C: at most {largest:.2f} {_place(worst)}")
    return lines


def _fit_lines(records: list[MatrixRecord]) -> list[str]:
    fits = [(r.fit_before, r.fit_after) for r in records if r.fit_before is not None and r.fit_after is not None]
    if not fits:
        return []
    before, after = (sum(errors) / len(fits) for errors in zip(*fits, strict=True))
    return [
        "output errors are those before the refit, and so are predicted losses; it took the error behind the "
        f"compressed layers, against its target, from {percent(before)} to {percent(after)} (mean of {len(fits)} down "
        "projections)"
    ]


def _adds(record: MatrixRecord) -> bool:
    several = isinstance(record.projection, LowRank) and record.projection.groups > 1
    return several and READS[record.name] is Side.INTERMEDIATE and record.relative_error is not None


def _place(record: MatrixRecord) -> str:
    return f"(layer {record.layer} {record.name})"
