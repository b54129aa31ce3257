"""Ranks of a whole model from the spectra of its projections: one budget, spent where the predicted loss falls most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin.checkpoint.source import SourceConfig, parameters, projections
from nxdi_svd_plugin.compress.plan import DENSE, fixed_projection, planned, projection_parameters
from nxdi_svd_plugin.factorize.allocate import Options
from nxdi_svd_plugin.factorize.rank_patterns import allocate_layers
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.svd_config import PROJECTIONS, Layers, Projection

Energies = Mapping[tuple[int, str], NDArray[np.float64]]


def global_ranks(config: SourceConfig, recipe: Recipe, energies: Energies) -> Layers:
    """Form and rank of every projection within the parameters that the recipe's ratio leaves.

    Dense and explicitly ranked projections stay what they are; all others may have any multiple of the block that saves
    something, or stay dense.

    Args:
        energies: squared singular values [hidden] of every projection, twice the nats per token that each one costs.
    Raises:
        RecipeError: the budget is smaller than the smallest ranks need.
    """
    choices = {key: _choices(config, recipe, *key) for key in projections(config)}
    options = [
        [_options(config, choices[i, name], name, energies[i, name]) for name in PROJECTIONS]
        for i in range(config.layers)
    ]
    limit = recipe.max_patterns if len({tuple(choices[key]) for key in choices if key[1] == "gate_proj"}) == 1 else 0
    rows = allocate_layers(options, budget(config, recipe), limit)
    return {
        i: {name: choices[i, name][chosen] for name, chosen in zip(PROJECTIONS, row, strict=True)}
        for i, row in enumerate(rows)
    }


def budget(config: SourceConfig, recipe: Recipe) -> int:
    """Parameters that all MLP projections may store."""
    target = config.mlp_parameters if recipe.ratio_of == "mlp" else parameters(config)
    return int(config.mlp_parameters - recipe.asked * target)


def _choices(config: SourceConfig, recipe: Recipe, layer: int, name: str) -> list[Projection]:
    fixed = fixed_projection(config, recipe, layer, name)
    if fixed is not None:
        return [fixed]
    dense = projection_parameters(config, name, DENSE)
    ranked = [planned(recipe, rank) for rank in range(recipe.block, min(config.dims(name)), recipe.block)]
    return [p for p in ranked if projection_parameters(config, name, p) < dense] + [DENSE]


def _options(config: SourceConfig, choices: list[Projection], name: str, energy: NDArray[np.float64]) -> Options:
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    cost = [projection_parameters(config, name, p) for p in choices]
    loss = [0.0 if p.form == "dense" else 0.5 * float(tail[p.rank]) for p in choices]
    return Options(np.array(cost, dtype=np.int64), np.array(loss))
