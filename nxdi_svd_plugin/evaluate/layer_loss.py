"""Predicted against measured loss of every layer: is the number that the ranks were chosen by worth anything?

Measured is mean KL(dense || dense with only this layer's MLP compressed) in nats per token on a text; predicted is the
sum of the report's `predicted_loss` of the layer's projections. Ranks depend on the order of the losses, so the
Spearman rank correlation is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from nxdi_svd_plugin.checkpoint.partner import check_partner
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError
from nxdi_svd_plugin.evaluate.perplexity import check_window
from nxdi_svd_plugin.modeling.finite import check_logits
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.report.measured import LayerLosses, TextName
from nxdi_svd_plugin.report.record import Report

TOKENS, WINDOW = 2048, 512  # without other numbers; every window runs once for every layer


def predicted_losses(directory: Path) -> list[float]:
    """Sum of the predicted losses of each layer's projections and dropped neurons, from report.json.

    A down that was fitted again since makes up for other layers too, so what is measured of it alone may be more.

    Raises:
        CheckpointError: it has none: another objective than two_sided, a directory from elsewhere, or factors that
            were trained after the prediction.
    """
    report = Report.read(directory)
    if report.trained:
        raise CheckpointError(
            f"the factors of {directory} were trained after their losses were predicted; give its input"
        )
    losses = dict.fromkeys(sorted(report.layers), 0.0)
    for record in report.matrices:
        if record.rank is not None and record.predicted_loss is None:
            raise CheckpointError(
                f"the report of {directory} has no predicted losses; compress with objective two_sided"
            )
        losses[record.layer] += (record.predicted_loss or 0.0) + (record.drop_loss or 0.0)
    return list(losses.values())


@torch.no_grad()
def measure_layers(
    dense: Path, compressed: Path, ids: torch.Tensor, window: int, text: TextName, progress: bool = False
) -> LayerLosses:
    """Compress one layer at a time and compare the predictions with the dense model's; both models are in memory.

    Args:
        ids: tokens of `text`; cut into whole windows of `window`.
    Raises:
        CheckpointError: no predictions, or two directories of different models. CalibrationError: less text than a
            window. NotFiniteError: logits that are no numbers. RecipeError: a window that the model cannot take.
    """
    predicted = predicted_losses(compressed)
    if len(ids) < window:
        raise CalibrationError(f"the text has {len(ids)} tokens, one window needs {window}; give more text or --window")
    check_partner(compressed, dense)
    base, other = load_model(dense, dtype=torch.float32), load_model(compressed, dtype=torch.float32)
    check_window(base, window)
    windows = ids[: len(ids) // window * window].reshape(-1, window)
    totals = [0.0] * len(predicted)
    for row in tqdm(windows, desc="layer losses", disable=not progress):
        reference = _log_probabilities(base, row)
        for i, (ours, theirs) in enumerate(zip(base.model.layers, other.model.layers, strict=True)):
            kept, ours.mlp = ours.mlp, theirs.mlp
            totals[i] += float((reference.exp() * (reference - _log_probabilities(base, row))).sum())
            ours.mlp = kept
    measured = [total / windows.numel() for total in totals]
    touched = [i for i, loss in enumerate(predicted) if loss > 0]
    correlation = rank_correlation([predicted[i] for i in touched], [measured[i] for i in touched])
    return LayerLosses(tuple(predicted), tuple(measured), correlation, windows.numel(), window, text)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rho of two lists without ties: the correlation of their ranks; None below two entries."""
    if len(first) < 2:
        return None
    ranks = [torch.tensor(list(values), dtype=torch.float64).argsort().argsort() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks).to(torch.float64))[0, 1])


def to_text(losses: LayerLosses) -> str:
    """A line for each layer, then the rank correlation."""
    lines = [f"{'layer':>5}  {'predicted':>10}  {'measured':>10}   nats per token"]
    pairs = zip(losses.predicted, losses.measured, strict=True)
    lines += [f"{i:>5}  {predicted:>10.3g}  {measured:>10.3g}" for i, (predicted, measured) in enumerate(pairs)]
    rho = "-" if losses.rank_correlation is None else f"{losses.rank_correlation:.3f}"
    lines.append(f"rank correlation (Spearman) {rho} on {losses.tokens} tokens of {losses.text.name}, float32")
    return "\n".join(lines)


def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids[None], use_cache=False).logits[0]
    check_logits(model, logits)
    return logits.to(torch.float32).log_softmax(-1)
