"""What a compression did: report.json and a table of it."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.stored.layers import PROJECTIONS


@dataclass(frozen=True)
class Report:
    """Everything that report.json says.

    source: name, model_type, fingerprint.
    ratio: asked, target, and reached for the MLP and the whole model (Eq. 4).
    parameters: dense and compressed counts of MLP and model.
    matrices: one record per projection: layer, projection, form, rank, relative output error on the calibration tokens,
        discarded and total energy of the objective, relative ridge on the covariance, seconds. The two-sided recipes
        add `predicted_loss` in nats per token and `bf16_error`, the relative output error of the stored form in
        bfloat16 against the same factors in float64; the interpolative form adds `growth`, its largest coefficient, and
        `limited`, how far the limit of that has changed the matrix (0 as a rule).
    calibration: text, sha256, samples, length, tokens, seed.
    cost: wall and CPU seconds, peak memory of this process, threads, processes, device.
    files: sha256 of every weight file.
    """

    source: dict[str, Any]
    ratio: dict[str, Any]
    parameters: dict[str, int]
    matrices: list[dict[str, Any]]
    calibration: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    cost: dict[str, Any]
    files: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Ranks and relative output errors of each layer, and the totals."""
        ratio, cost = self.ratio, self.cost
        return "\n".join(
            [
                layer_table(self.matrices),
                *rounding_lines(self.matrices),
                f"ratio asked {ratio['asked']:.4f} of the {ratio['target']}; reached {ratio['mlp']:.4f} of the MLP, "
                f"{ratio['model']:.4f} of the model",
                f"{cost['wall_seconds']:.1f} s ({cost['cpu_seconds']:.1f} CPU s), "
                f"peak memory {cost['peak_bytes'] / 2**30:.2f} GiB",
            ]
        )


def layer_table(matrices: Iterable[dict[str, Any]]) -> str:
    """One line a layer: rank and relative output error of each projection."""
    rows: dict[int, dict[str, str]] = {}
    for record in matrices:
        dense = record["form"] == "dense"
        cell = "dense" if dense else f"{record['rank']} ({100 * record['relative_error']:.1f} %)"
        rows.setdefault(record["layer"], {})[record["projection"]] = cell
    head = (
        "layer  " + "  ".join(f"{name:>16}" for name in PROJECTIONS) + "   rank (output error on the calibration text)"
    )
    return "\n".join([head, *(f"{i:5}  " + "  ".join(f"{r[p]:>16}" for p in PROJECTIONS) for i, r in rows.items())])


def rounding_lines(matrices: Iterable[dict[str, Any]]) -> list[str]:
    """The worst rounding of the stored forms and the largest growth, and where; nothing if neither was measured."""
    lines = []
    for key, what, unit in (
        ("bf16_error", "error that bfloat16 adds to an output", 100.0),
        ("growth", "max abs C", 1.0),
    ):
        found = [record for record in matrices if record.get(key) is not None]
        if found:
            worst = max(found, key=lambda record: float(record[key]))
            value = f"{unit * worst[key]:.2f}{' %' if unit > 1 else ''}"
            lines.append(f"{what}: at most {value} (layer {worst['layer']} {worst['projection']})")
    return lines


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux says it in /proc; getrusage's figure starts there with the peak of the process that launched this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
