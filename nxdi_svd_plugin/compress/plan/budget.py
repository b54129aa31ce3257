"""Ranks of a whole model from the spectra of its projections: one budget, spent where the predicted loss falls most."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin.checkpoint.source import SourceConfig, projections
from nxdi_svd_plugin.checkpoint.tensors import parameters
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.forms import choices, named
from nxdi_svd_plugin.compress.plan.limits import NO_LIMITS, Limits, within
from nxdi_svd_plugin.compress.plan.ranks import Key, fixed_projection, layers_of
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.allocate import Options, total
from nxdi_svd_plugin.factorize.rank_patterns import allocate_layers
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.layers import Layers
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, Dense, Projection

logger = logging.getLogger(__name__)
Energies = Mapping[Key, NDArray[np.float64]]
NOTHING: NDArray[np.float64] = np.zeros(0)


def global_ranks(config: SourceConfig, recipe: Recipe, energies: Energies, limits: Limits = NO_LIMITS) -> Layers:
    """Form and rank of every projection within the parameters that the recipe's ratio leaves.

    Dense and explicitly ranked projections stay what they are; all others may have any multiple of the block that saves
    something, or stay dense.

    Args:
        energies: squared singular values of every projection that is not fixed dense, the i-th of all its groups
            together: twice the nats per token that a rank of i more in every group saves.
        limits: of the weights' ranks; no larger one is chosen.
    Raises:
        RecipeError: the budget is smaller than the smallest ranks need, or `max_patterns` than what is fixed needs.
    """
    found, used = ranks_within(config, recipe, energies, limits)
    warn_if_unused(used / budget(config, recipe), recipe)
    return found


def ranks_within(config: SourceConfig, recipe: Recipe, energies: Energies, limits: Limits) -> tuple[Layers, int]:
    """`global_ranks` without its warning, and the parameters that are used; without energies, whether there are any.

    Raises:
        RecipeError: as `global_ranks`.
    """
    allowed = {key: _choices(config, recipe, *key, limits.get(key)) for key in projections(config)}
    offered = _common(allowed) if recipe.max_patterns else allowed
    penalty = 1.0 + sum(float(energy.sum()) for energy in energies.values())
    options = [
        [_options(config, offered[i, n], allowed[i, n], energies.get((i, n), NOTHING), penalty) for n in PROJECTIONS]
        for i in range(config.layers)
    ]
    rows = allocate_layers(options, budget(config, recipe), recipe.max_patterns)
    used, _ = total([o for layer in options for o in layer], [chosen for row in rows for chosen in row])
    found = {
        (i, name): offered[i, name][chosen]
        for i, row in enumerate(rows)
        for name, chosen in zip(PROJECTIONS, row, strict=True)
    }
    wrong = [f"{i}.{name}" for (i, name), own in allowed.items() if found[i, name] not in own]
    if wrong:
        raise RecipeError(
            f"max_patterns {recipe.max_patterns} and the budget leave no room for what the recipe fixes ({wrong[0]}, "
            f"{len(wrong)} in all); raise max_patterns, lower the ratio, or fix fewer projections of single layers"
        )
    return layers_of(config, found), used


def check_patterns(config: SourceConfig, recipe: Recipe, limits: Limits) -> None:
    """Refuse `max_patterns` where it leaves no room for what the recipe fixes, or the weights limit, in single layers:
    by the allocation of the run itself, with losses of zero.

    Raises:
        RecipeError: as `global_ranks`.
    """
    single = limits or any(selector[0].isdigit() for selector in (*recipe.ranks, *recipe.dense))
    if recipe.allocation == "global" and recipe.max_patterns and single and not recipe.drops:
        ranks_within(config, recipe, {}, limits)


def warn_if_unused(share: float, recipe: Recipe) -> None:
    """Say that a choice leaves more than 0.1 % of the budget."""
    if share < 0.999:
        logger.warning(
            "the ranks found use %.2f %% of the parameters that the ratio leaves, so the model is smaller than asked. "
            "To come nearer use a smaller block than %d%s",
            *(100 * share, recipe.block, " or a larger max_patterns" if recipe.max_patterns else ""),
        )


def _common(allowed: Mapping[Key, list[Projection]]) -> dict[Key, list[Projection]]:
    """The same choices in the same order for every layer: all that any layer has."""
    union = {name: {p: None for key, own in allowed.items() if key[1] == name for p in own} for name in PROJECTIONS}
    return {key: list(union[key[1]]) for key in allowed}


def budget(config: SourceConfig, recipe: Recipe) -> int:
    """Parameters that all MLP projections may store."""
    target = config.mlp_parameters if recipe.ratio_of == "mlp" else parameters(config)
    return int(config.mlp_parameters - recipe.asked * target)


def _choices(config: SourceConfig, recipe: Recipe, layer: int, name: str, limit: int | None) -> list[Projection]:
    fixed = fixed_projection(config, recipe, layer, name)
    if fixed is not None:
        return [within(fixed, limit, recipe.block)]
    form = named(recipe.form)
    groups = Groups.of(config, recipe)
    planned = [form.planned(rank, groups.count) for rank in choices(form, groups.hidden, groups.part, recipe.block)]
    return [*(p for p in planned if within(p, limit, recipe.block) == p), DENSE]


def _options(
    config: SourceConfig,
    offered: list[Projection],
    allowed: list[Projection],
    energy: NDArray[np.float64],
    penalty: float,
) -> Options:
    """Costs and losses of what is offered; what this layer may not be costs more than all losses together."""
    found = priced(config.hidden, config.intermediate, offered, energy)
    may = np.array([p in allowed for p in offered])
    return Options(found.cost, np.where(may, found.loss, penalty))


def priced(hidden: int, width: int, offered: Sequence[Projection], energy: NDArray[np.float64]) -> Options:
    """Numbers stored and predicted loss of forms and ranks of one projection, the loss of dense being 0."""
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    cost = [p.parameters(hidden, width) for p in offered]
    loss = [0.0 if isinstance(p, Dense) else 0.5 * float(tail[min(p.rank // p.groups, len(energy))]) for p in offered]
    return Options(np.array(cost, dtype=np.int64), np.array(loss))
