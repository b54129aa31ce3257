"""What of a recovery is written: the trained matrices as a file holds them, or the input's where they are no better."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nxdi_svd_plugin.checkpoint.names import projection_prefix
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.errors import NotFiniteError
from nxdi_svd_plugin.recover.train import validation_perplexity
from nxdi_svd_plugin.report.measured import Change
from nxdi_svd_plugin.stored.layers import Layers
from nxdi_svd_plugin.stored.projection import GROWTH_LIMIT, READS, LowRank

logger = logging.getLogger(__name__)


def coefficients(layers: Layers) -> dict[tuple[int, str], str]:
    """(layer, projection) to the name of its far matrix, where that has pivots and so a limit of its growth."""
    return {
        (i, name): projection_prefix(i, name) + projection.names(READS[name])[1]
        for i, mlp in layers.items()
        for name, projection in mlp.items()
        if isinstance(projection, LowRank) and projection.pivots
    }


@torch.no_grad()
def as_stored(factors: Mapping[str, Tensor], reader: Reader, layers: Layers) -> None:
    """Bring the factors to what a file can hold: growth within GROWTH_LIMIT, rounded to the stored dtype."""
    for name in coefficients(layers).values():
        factors[name].clamp_(-GROWTH_LIMIT, GROWTH_LIMIT)
    for name, parameter in factors.items():
        parameter.copy_(parameter.to(reader.tensors[name].dtype))


def choose(model: Any, factors: Mapping[str, Tensor], before: Mapping[str, Tensor], validation: Tensor) -> Change:
    """Leave the better of the trained factors and those `before` in the model, and say what both reach.

    Args:
        validation: token ids [windows, length].
    """
    try:
        trained = validation_perplexity(model, validation)
    except NotFiniteError:
        trained = None
    candidate = copies(factors)
    restore(factors, before)
    original = validation_perplexity(model, validation)
    if trained is None or trained >= original:
        return Change(original, trained, original)
    restore(factors, candidate)
    return Change(original, trained, trained)


def tell(change: Change, best_step: int) -> None:
    """Log what came of it."""
    if change.output < change.input:
        logger.info("validation perplexity %.3f, was %.3f (best step %d)", change.output, change.input, best_step)
        return
    logger.warning(
        "recovery did not help: validation perplexity %s, the input has %.3f; the output keeps the input. "
        "Try more or other text, or a smaller learning rate",
        "no number" if change.trained is None else f"{change.trained:.3f}",
        change.input,
    )


def copies(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values, apart from the parameters."""
    return {name: parameter.detach().clone() for name, parameter in factors.items()}


@torch.no_grad()
def restore(factors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    for name, parameter in factors.items():
        parameter.copy_(values[name])
