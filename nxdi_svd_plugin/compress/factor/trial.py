"""The weights of a layer that is changed alone, multiplied out, and what the change is expected to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.factor.narrow import Weights
from nxdi_svd_plugin.compress.factor.spectra import restore
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.projection import READS


@dataclass(frozen=True)
class Changed:
    """weights: torch's [out, in] by projection, of those that are another. predicted: nats per token."""

    weights: dict[str, Tensor]
    predicted: float


def truncated_weights(
    recipe: Recipe, decomposed: Mapping[str, Tensor], tokens: int, weights: Weights, ranks: Mapping[str, int]
) -> Changed:
    """Every projection in `ranks` at this rank in every group, whatever form stores it.

    Args:
        decomposed: what `decompose` gave for them, with vectors.
    """
    found, predicted = {}, 0.0
    for name, rank in ranks.items():
        weight, parts = weights(name), []
        for group in restore(recipe, decomposed, tokens, name, weight):
            cut = group.truncated(rank)
            parts.append(cut.columns(torch.arange(cut.far.shape[1], device=cut.far.device)).to(torch.float32))
            predicted += group.loss(rank) or 0.0
        found[name] = READS[name].hidden_first(torch.cat(parts, 1)).contiguous()
    return Changed(found, predicted)
