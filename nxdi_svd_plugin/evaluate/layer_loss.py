"""Predicted against measured loss of every layer: is the number that the ranks were chosen by worth anything?

Measured is mean KL(dense || dense with only this layer's MLP compressed) in nats per token on a text; predicted is the
sum of the report's `predicted_loss` of the layer's projections. Ranks depend on the order of the losses, so the
Spearman rank correlation is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.atomic import write_json
from nxdi_svd_plugin.checkpoint.names import REPORT
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.load import load_model


@dataclass(frozen=True)
class LayerLosses:
    """Nats per token by layer, and the rank correlation of the two lists over the layers that were compressed."""

    predicted: list[float]
    measured: list[float]
    rank_correlation: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def predicted_losses(directory: Path) -> list[float]:
    """Sum of the predicted losses of each layer's projections, from report.json.

    Raises:
        CheckpointError: the report has none: another objective than two_sided, or a directory from elsewhere.
    """
    report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    losses: dict[int, float] = {}
    for record in report["matrices"]:
        if record["form"] != "dense" and "predicted_loss" not in record:
            raise CheckpointError(f"{directory / REPORT} has no predicted losses; compress with objective two_sided")
        losses[record["layer"]] = losses.get(record["layer"], 0.0) + record.get("predicted_loss", 0.0)
    return [losses[i] for i in sorted(losses)]


@torch.no_grad()
def measure_layers(dense: Path, compressed: Path, ids: torch.Tensor, window: int) -> LayerLosses:
    """Compress one layer at a time and compare the predictions with the dense model's.

    Args:
        ids: tokens; cut into whole windows of `window`.
    """
    base, other = load_model(dense, dtype=torch.float32), load_model(compressed, dtype=torch.float32)
    windows = ids[: len(ids) // window * window].reshape(-1, window)
    expected = [_log_probabilities(base, ids) for ids in windows]
    measured = []
    for ours, theirs in zip(base.model.layers, other.model.layers, strict=True):
        kept, ours.mlp = ours.mlp, theirs.mlp
        total = 0.0
        for row, reference in zip(windows, expected, strict=True):
            found = _log_probabilities(base, row)
            total += float((reference.exp() * (reference - found)).sum())
        measured.append(total / windows.numel())
        ours.mlp = kept
    predicted = predicted_losses(compressed)
    touched = [i for i, loss in enumerate(predicted) if loss > 0]
    correlation = rank_correlation([predicted[i] for i in touched], [measured[i] for i in touched])
    return LayerLosses(predicted, measured, correlation, windows.numel())


def add_to_report(directory: Path, losses: LayerLosses) -> None:
    """Put the losses into report.json as `layer_losses`."""
    report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    write_json(directory / REPORT, {**report, "layer_losses": losses.to_dict()})


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho of two lists without ties: the correlation of their ranks; nan below two entries."""
    if len(first) < 2:
        return float("nan")
    ranks = [torch.tensor(list(values), dtype=torch.float64).argsort().argsort() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks).to(torch.float64))[0, 1])


def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids[None], use_cache=False).logits[0]
    return logits.to(torch.float32).log_softmax(-1)
