"""What a recipe does to a model, from config.json alone: forms, ranks, ratios."""

from __future__ import annotations

from functools import partial

from nxdi_svd_plugin.checkpoint.source import SourceConfig, projections
from nxdi_svd_plugin.checkpoint.tensors import parameters
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.forms import named
from nxdi_svd_plugin.compress.plan.limits import NO_LIMITS, Limits, within
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.rank import block_rank, ratio
from nxdi_svd_plugin.recipe import Recipe, lookup
from nxdi_svd_plugin.report.record import Ratio
from nxdi_svd_plugin.stored.layers import Layers, mlp_of
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank, Projection

Key = tuple[int, str]
"""(layer, projection)."""


def decide_ranks(config: SourceConfig, recipe: Recipe, limits: Limits = NO_LIMITS) -> Layers:
    """Form and rank of every projection: dense and explicit ranks first, Eq. 5 for the rest.

    The rest shares what is left of the budget: its ratio is larger than the one asked for when projections stay dense.
    Where `drop` is true and ranks alone cannot save enough, the rest is dense.

    Args:
        limits: of the weights' ranks; what is above them stays dense.
    Raises:
        RecipeError: groups that do not divide the neurons, an unknown form, selectors that fit nothing or contradict
            each other, a ratio or block that cannot be met.
    """
    form, groups = named(recipe.form), Groups.of(config, recipe)
    _check_groups(groups)
    _check_layers(config, recipe)
    found = {key: fixed for key in projections(config) if (fixed := fixed_projection(config, recipe, *key)) is not None}
    rest = [key for key in projections(config) if key not in found]
    if recipe.ratio is not None and not rest and not recipe.drops:
        raise RecipeError(
            f"ratio {recipe.ratio} has no effect: dense and ranks name every projection; remove one of them"
        )
    try:
        if rest:
            wanted = _ratio_of_rest(config, recipe, found, len(rest))
            found |= dict.fromkeys(rest, form.planned(_rank_of_rest(wanted, groups, recipe), groups.count))
    except RecipeError:
        if not recipe.drop:
            raise
        found |= dict.fromkeys(rest, DENSE)
    return layers_of(
        config, {key: within(projection, limits.get(key), recipe.block) for key, projection in found.items()}
    )


def layers_of(config: SourceConfig, found: dict[Key, Projection]) -> Layers:
    """The layers of a model out of its projections; every layer keeps its whole width."""
    return {
        layer: mlp_of(config.intermediate, {name: found[layer, name] for name in PROJECTIONS})
        for layer in range(config.layers)
    }


def fixed_projection(config: SourceConfig, recipe: Recipe, layer: int, name: str) -> Projection | None:
    """What the recipe's `dense` and `ranks` say about a projection; None when they say nothing."""
    rank, rank_level = lookup(recipe.ranks, layer, name)
    _, dense_level = lookup(dict.fromkeys(recipe.dense, True), layer, name)
    if dense_level > rank_level:
        return DENSE
    if not rank_level:
        return None
    form, groups = named(recipe.form), Groups.of(config, recipe)
    own, odd = divmod(rank, groups.count)
    each = f" in each of {groups.count} groups" if groups.count > 1 else ""
    if odd:
        raise RecipeError(
            f"rank {rank} for {layer}.{name} does not divide over {groups.count} groups of equal rank; use a multiple "
            f"of {groups.count}"
        )
    if own > groups.side:
        raise RecipeError(f"rank {rank} for {layer}.{name} is more than its full rank {groups.side}{each}")
    if not form.fits(own, groups.hidden, groups.part, recipe.block):
        raise RecipeError(
            f"rank {rank} for {layer}.{name}: an {recipe.form} rank is a multiple of the block {recipe.block} and "
            f"less than {groups.side}{each}"
        )
    return form.planned(own, groups.count)


def _check_groups(groups: Groups) -> None:
    if groups.intermediate % groups.count:
        fit = [str(n) for n in range(1, groups.count + 8) if groups.intermediate % n == 0]
        raise RecipeError(
            f"tp_degree {groups.count} does not divide the model's {groups.intermediate} intermediate neurons into "
            f"equal groups; use one that does, such as {', '.join(fit[-4:])}"
        )


def larger(config: SourceConfig, layers: Layers) -> str:
    """A sentence on the projections that store at least as many numbers as the dense weight, "" if there are none."""
    dense = DENSE.parameters(config.hidden, config.intermediate)
    found = {
        f"{i}.{name}": projection.rank
        for i, mlp in layers.items()
        for name, projection in mlp.items()
        if isinstance(projection, LowRank) and projection.parameters(config.hidden, mlp.width) >= dense
    }
    if not found:
        return ""
    name, rank = next(iter(found.items()))
    return (
        f"rank {rank} of {name}{f' (and of {len(found) - 1} more)' if len(found) > 1 else ''} saves nothing: the "
        f"factors are not smaller than the dense weight of {config.intermediate} x {config.hidden}; lower the rank or "
        "keep the projection dense"
    )


def _check_layers(config: SourceConfig, recipe: Recipe) -> None:
    for selector in (*recipe.ranks, *recipe.dense):
        layer = selector.partition(".")[0]
        if layer.isdigit() and int(layer) >= config.layers:
            raise RecipeError(f"{selector} is not in the model, which has layers 0 to {config.layers - 1}")


def _ratio_of_rest(config: SourceConfig, recipe: Recipe, fixed: dict[Key, Projection], count: int) -> float:
    """The ratio of the `count` free projections that makes the target meet the ratio asked for."""
    sides = config.hidden, config.intermediate
    target = config.mlp_parameters if recipe.ratio_of == "mlp" else parameters(config)
    saved = sum(DENSE.parameters(*sides) - projection.parameters(*sides) for projection in fixed.values())
    free = count * DENSE.parameters(*sides)
    wanted = (recipe.asked * target - saved) / free
    if not 0 < wanted < 1:
        raise RecipeError(
            f"ratio {recipe.asked} of the {recipe.ratio_of} asks to save {recipe.asked * target:.0f} parameters; "
            f"with {saved} saved by explicit ranks, the {count} free projections ({free} parameters) would need "
            f"ratio {wanted:.3g}: change ratio, ranks or dense"
        )
    return wanted


def _rank_of_rest(wanted: float, groups: Groups, recipe: Recipe) -> int:
    """Eq. 5's rank in every group. Where a budget chooses later, among all ranks that save something, the nearest one
    that saves nothing is no reason to stop: the next below it is shown."""
    rounded = partial(block_rank, wanted, groups.hidden, groups.part, recipe.block, cost=named(recipe.form).cost)
    try:
        return rounded(tau=recipe.tau)
    except RecipeError:
        if recipe.allocation != "global":
            raise
        return rounded(tau=1.0)


def stored_parameters(config: SourceConfig, layers: Layers) -> int:
    """Numbers that the MLPs store."""
    return sum(mlp.parameters(config.hidden) for mlp in layers.values())


def reached(config: SourceConfig, recipe: Recipe, kept: int) -> Ratio:
    """The ratios that `kept` stored MLP parameters reach."""
    total = parameters(config)
    saved = config.mlp_parameters - kept
    return Ratio(recipe.asked, recipe.ratio_of, ratio(config.mlp_parameters, kept), ratio(total, total - saved))
