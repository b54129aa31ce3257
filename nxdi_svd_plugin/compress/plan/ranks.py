"""What a recipe does to a model, from config.json alone: ranks, ratios, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nxdi_svd_plugin.checkpoint.source import SourceConfig, parameters, projections
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.interpolative import interpolative_rank
from nxdi_svd_plugin.factorize.rank import block_rank, ratio
from nxdi_svd_plugin.recipe import Recipe, lookup
from nxdi_svd_plugin.stored.layers import Layers, Projection, tensor_shapes

DENSE = Projection("dense")


@dataclass(frozen=True)
class Ratios:
    """Eq. 4 for the MLP weights and for the whole model, from parameter counts."""

    asked: float
    target: str
    mlp: float
    model: float


def projection_parameters(config: SourceConfig, name: str, projection: Projection) -> int:
    """Numbers stored for one projection."""
    return sum(math.prod(shape) for shape in tensor_shapes(projection, *config.dims(name)).values())


def decide_ranks(config: SourceConfig, recipe: Recipe) -> Layers:
    """Form and rank of every projection: dense and explicit ranks first, Eq. 5 for the rest.

    The rest shares what is left of the budget: its ratio is larger than the one asked for when projections stay dense.

    Raises:
        RecipeError: selectors that fit nothing or contradict each other, a ratio or block that cannot be met.
    """
    _check_layers(config, recipe)
    fixed = {
        key: projection
        for key in projections(config)
        if (projection := fixed_projection(config, recipe, *key)) is not None
    }
    rest = [key for key in projections(config) if key not in fixed]
    if recipe.ratio is not None and not rest:
        raise RecipeError(
            f"ratio {recipe.ratio} has no effect: dense and ranks name every projection; remove one of them"
        )
    if rest:
        wanted = _ratio_of_rest(config, recipe, fixed, rest)
        for layer, name in rest:
            fixed[layer, name] = planned(recipe, uniform_rank(recipe, wanted, *config.dims(name)))
    layers: Layers = {}
    for layer, name in projections(config):
        layers.setdefault(layer, {})[name] = fixed[layer, name]
    return layers


def fixed_projection(config: SourceConfig, recipe: Recipe, layer: int, name: str) -> Projection | None:
    """What the recipe's `dense` and `ranks` say about a projection; None when they say nothing."""
    rank, rank_level = lookup(recipe.ranks, layer, name)
    _, dense_level = lookup(dict.fromkeys(recipe.dense, True), layer, name)
    if dense_level > rank_level:
        return DENSE
    if rank_level:
        if rank > min(config.dims(name)):
            raise RecipeError(f"rank {rank} for {layer}.{name} is more than its full rank {min(config.dims(name))}")
        if recipe.form == "interpolative" and (rank % recipe.block or rank == min(config.dims(name))):
            raise RecipeError(
                f"rank {rank} for {layer}.{name}: an interpolative rank is a multiple of the block {recipe.block} and "
                f"less than {min(config.dims(name))}"
            )
        return planned(recipe, rank)
    return None


def uniform_rank(recipe: Recipe, wanted: float, fan_in: int, fan_out: int) -> int:
    """Eq. 5 with the cost of the recipe's form."""
    if recipe.form == "interpolative":
        return interpolative_rank(fan_in, fan_out, wanted, recipe.block, recipe.tau)
    return block_rank(wanted, fan_in, fan_out, recipe.block, recipe.tau)


def planned(recipe: Recipe, rank: int) -> Projection:
    """A projection of this rank in the recipe's form; which neurons are pivots is decided when it is factored."""
    if recipe.form == "interpolative":
        return Projection("interpolative", rank, ((0, rank),))
    return Projection("factored", rank)


def _check_layers(config: SourceConfig, recipe: Recipe) -> None:
    for selector in (*recipe.ranks, *recipe.dense):
        layer = selector.partition(".")[0]
        if layer.isdigit() and int(layer) >= config.layers:
            raise RecipeError(f"{selector} is not in the model, which has layers 0 to {config.layers - 1}")


def _ratio_of_rest(
    config: SourceConfig, recipe: Recipe, fixed: dict[tuple[int, str], Projection], rest: list[tuple[int, str]]
) -> float:
    """The ratio of the free projections that makes the target meet the ratio asked for."""
    target = config.mlp_parameters if recipe.ratio_of == "mlp" else parameters(config)
    saved = sum(
        projection_parameters(config, name, DENSE) - projection_parameters(config, name, projection)
        for (_, name), projection in fixed.items()
    )
    free = sum(projection_parameters(config, name, DENSE) for _, name in rest)
    wanted = (recipe.asked * target - saved) / free if free else 0.0
    if not 0 < wanted < 1:
        raise RecipeError(
            f"ratio {recipe.asked} of the {recipe.ratio_of} asks to save {recipe.asked * target:.0f} parameters; "
            f"with {saved} saved by explicit ranks, the {len(rest)} free projections ({free} parameters) would need "
            f"ratio {wanted:.3g}: change ratio, ranks or dense"
        )
    return wanted


def reached(config: SourceConfig, recipe: Recipe, layers: Layers) -> Ratios:
    """The ratios that these ranks reach."""
    kept = sum(projection_parameters(config, name, p) for layer in layers.values() for name, p in layer.items())
    total = parameters(config)
    saved = config.mlp_parameters - kept
    return Ratios(recipe.asked, recipe.ratio_of, ratio(config.mlp_parameters, kept), ratio(total, total - saved))
