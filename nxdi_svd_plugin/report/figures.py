"""The figures of report.md, drawn with matplotlib (extra `plots`) without a display and without global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.measured import LayerLosses, Row
from nxdi_svd_plugin.stored.projection import PROJECTIONS
from nxdi_svd_plugin.versions import import_extra

DPI = 120
COLOURS = dict(zip(PROJECTIONS, ("tab:blue", "tab:orange", "tab:green"), strict=True))


class Measured(Protocol):
    """A model with a ratio and evaluation rows."""

    @property
    def ratio(self) -> float:
        """Share of the MLP parameters that was saved."""

    @property
    def group(self) -> str:
        """How it was made; points of one line share it."""

    @property
    def rows(self) -> Sequence[Row]:
        """Evaluation rows."""


Points = dict[str, list[tuple[float, float]]]


def series(entries: Sequence[Measured], metric: str) -> tuple[Points, Points]:
    """(compressed, base) points (ratio, score) of each line, by rising ratio.

    A line is a task that has this metric, and where they differ the window and how the models were made.
    """
    compressed: Points = {}
    base: Points = {}
    groups = {entry.group for entry in entries}
    windows = {row.window for entry in entries for row in entry.rows if row.metric == metric}
    for entry in sorted(entries, key=lambda e: e.ratio):
        for row in entry.rows:
            if row.metric == metric:
                parts = [row.task]
                parts += [f"window {row.window}"] if len(windows) > 1 and row.window else []
                parts += [entry.group] if len(groups) > 1 else []
                compressed.setdefault(", ".join(parts), []).append((entry.ratio, row.compressed))
                base.setdefault(", ".join(parts), []).append((entry.ratio, row.base))
    return compressed, base


def quality(entries: Sequence[Measured], path: Path) -> None:
    """Perplexity (log scale) and accuracy against the ratio; the dense model is the point at ratio 0."""
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2)
    for axes, metrics, label in (
        (panels[0], ("perplexity", "word_perplexity"), "perplexity"),
        (panels[1], ("acc",), "accuracy"),
    ):
        drawn = sum(draw(axes, entries, metric) for metric in metrics)
        axes.set_xlabel("ratio (share of the MLP parameters saved)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if drawn:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    if panels[0].lines:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}")
    save(figure, path)


def draw(axes: Any, entries: Sequence[Measured], metric: str) -> int:
    """One line a task from the dense score at ratio 0; returns how many."""
    compressed, base = series(entries, metric)
    for task, points in compressed.items():
        dense = [(0.0, base[task][0][1])]
        label = task if metric in ("acc", "perplexity") else f"{task} (word)"
        axes.plot(*zip(*dense, *points, strict=False), marker="o", label=label)
    return len(compressed)


def layers(matrices: Sequence[MatrixRecord], title: str, path: Path) -> None:
    """Relative output error of each layer's projections above the map of their ranks; "d" marks a dense one.

    Dotted: what bfloat16 adds, where it was measured.
    """
    figure = new_figure(10, 5)
    errors, ranks = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    count = 1 + max(record.layer for record in matrices)
    for name in PROJECTIONS:
        found = [record for record in matrices if record.name == name and record.rank is not None]
        for values, style in (
            ({record.layer: record.relative_error for record in found}, {"marker": ".", "label": name}),
            ({record.layer: record.bf16_error for record in found}, {"linestyle": ":"}),
        ):
            errors.plot(range(count), in_percent(values, count), color=COLOURS[name], **style)
    measured = any(record.bf16_error is not None for record in matrices)
    errors.set_ylabel("output error (%)" + ("\ndotted: added by bfloat16" if measured else ""))
    errors.set_title(title)
    errors.grid(alpha=0.3)
    errors.legend(fontsize="small")
    grid = [[math.nan] * count for _ in PROJECTIONS]
    for record in matrices:
        row = PROJECTIONS.index(record.name)
        if record.rank is None:
            ranks.text(record.layer, row, "d", ha="center", va="center", fontsize=7)
        else:
            grid[row][record.layer] = record.rank
    image = ranks.imshow(grid, aspect="auto", cmap="viridis")
    ranks.set_yticks(range(len(PROJECTIONS)), PROJECTIONS)
    ranks.set_xlabel("layer")
    figure.colorbar(image, ax=[errors, ranks], label="rank")
    save(figure, path)


def in_percent(shares: Mapping[int, float | None], count: int) -> list[float]:
    """The shares of layers 0 to count - 1 in percent; NaN, which interrupts a line, where there is none."""
    found = [shares.get(layer) for layer in range(count)]
    return [math.nan if share is None else 100 * share for share in found]


def losses(found: LayerLosses, title: str, path: Path) -> None:
    """Predicted against measured loss of each layer, on logarithmic axes, with the line where they are equal."""
    figure = new_figure(5, 5)
    axes = figure.subplots()
    pairs = enumerate(zip(found.predicted, found.measured, strict=True))
    points = [(x, y, str(i)) for i, (x, y) in pairs if x > 0 and y > 0]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=14)
    for x, y, layer in points:
        axes.annotate(layer, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7)
    if points:
        ends = [pick(value for x, y, _ in points for value in (x, y)) for pick in (min, max)]
        axes.plot(ends, ends, color="gray", linewidth=0.8, label="equal")
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize="small")
    rho = found.rank_correlation
    axes.set_title(title if rho is None else f"{title}: rank correlation {rho:.2f}")
    axes.set_xlabel("predicted loss of the layer (nats per token)")
    axes.set_ylabel("measured loss (nats per token)")
    axes.grid(alpha=0.3)
    save(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure in inches."""
    return import_extra("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=DPI, format="png")
