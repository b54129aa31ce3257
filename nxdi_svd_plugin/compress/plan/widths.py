"""Widths and ranks of a whole model: every layer takes the neurons and the three ranks that one budget prefers.

What a layer may become is one of its widths and one form and rank for each projection, at the loss

    drop_loss(width) + sum over projections of share(width) * tail(energies, rank) / 2.

The energies are those of the whole width: a narrower layer's are taken to keep their shape, with the sum that the
neurons which stay have of gate and up, and with the whole sum of down, whose refit keeps all of the output but what
`drop_loss` counts. Before the factors are made, they are computed again for the width that was chosen (narrow.py), so
the approximation touches which widths and ranks are chosen, never the factors or the losses of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.forms import choices, named
from nxdi_svd_plugin.compress.plan.budget import Energies, budget, priced, warn_if_unused
from nxdi_svd_plugin.compress.plan.limits import NO_LIMITS, Limits, within
from nxdi_svd_plugin.compress.plan.ranks import fixed_projection
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.allocate import Options, total
from nxdi_svd_plugin.factorize.rank_patterns import allocate_layers, price_of_a_parameter
from nxdi_svd_plugin.factorize.undominated import take, thinned, together, undominated
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.layers import Layers, Mlp, mlp_of
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank, Projection

LEAST = 0.25
"""Share of the neurons that stays at least."""
MOST = 512
"""Choices of a layer that are looked at: 1 / MOST of its cost apart."""
PRICES = 2.0 ** np.arange(-2, 2.25, 0.25)
"""Of a parameter, around the one that fits the budget, whose choices all layers are offered under `max_patterns`."""
NOTHING: NDArray[np.float64] = np.zeros(0)


@dataclass(frozen=True)
class Curve:
    """What dropping does to one layer, at each of its widths.

    loss: nats per token. shares: by projection, what is left of the sum of its energies; 1 where it is not named.
    """

    widths: tuple[int, ...]
    loss: Sequence[float]
    shares: Mapping[str, Sequence[float]]


def widths(neurons: int, step: int, least: int) -> list[int]:
    """What a layer may keep: all of its neurons, or a multiple of `step` that is at least `least`; descending."""
    return [neurons, *(w for w in range(neurons // step * step, 0, -step) if least <= w < neurons)]


def layer_widths(config: SourceConfig, recipe: Recipe, layer: int) -> list[int]:
    """What a layer may keep, descending: all, or multiples of the block in every group. One that `dense` names as a
    whole keeps all."""
    groups = Groups.of(config, recipe)
    if not recipe.drops or str(layer) in recipe.dense:
        return [config.intermediate]
    return widths(config.intermediate, recipe.block * groups.count, int(LEAST * config.intermediate) + 1)


def global_widths(
    config: SourceConfig,
    recipe: Recipe,
    energies: Energies,
    curves: Mapping[int, Curve],
    limits: Limits = NO_LIMITS,
) -> Layers:
    """Width, forms and ranks of every layer within the parameters that the recipe's ratio leaves.

    Args:
        energies, limits: as `budget.global_ranks`; what limits the whole width limits every other.
    Raises:
        RecipeError: the budget is smaller than the smallest choices need, or `max_patterns` than what is fixed needs.
    """
    offers = [_Offers(config, recipe, i, curves[i], energies, limits) for i in range(config.layers)]
    found = [offer.undominated() for offer in offers]
    kept = budget(config, recipe)
    if recipe.max_patterns:
        found = _common(config, offers, found, kept)
    rows = [row for (row,) in allocate_layers([[options] for _, options in found], kept, recipe.max_patterns)]
    used, _ = total([options for _, options in found], rows)
    layers = {i: mlps[row] for i, ((mlps, _), row) in enumerate(zip(found, rows, strict=True))}
    wrong = [i for i, offer in enumerate(offers) if offer.loss(layers[i]) is None]
    if wrong:
        raise RecipeError(
            f"max_patterns {recipe.max_patterns} and the budget leave no room for what the recipe fixes (layer "
            f"{wrong[0]}, {len(wrong)} in all); raise max_patterns, lower the ratio, or fix fewer single layers"
        )
    warn_if_unused(used / kept, recipe)
    return layers


def check_budget(config: SourceConfig, recipe: Recipe, limits: Limits = NO_LIMITS) -> None:
    """Refuse a ratio that no choice of widths and ranks can reach; the uniform allocation does so itself.

    Raises:
        RecipeError: says what the budget is and what the smallest choices need.
    """
    if recipe.allocation != "global":
        return
    kept, need = budget(config, recipe), sum(_smallest(config, recipe, i, limits) for i in range(config.layers))
    if need > kept:
        forced = f"; zeros or repeated neurons keep {len(limits)} projections from small ranks" if limits else ""
        raise RecipeError(
            f"ratio {recipe.asked} leaves {kept} parameters for the MLPs, but the smallest choices that the recipe "
            f"allows need {need}{forced}; lower the ratio, the block or the number of dense projections"
        )


def _smallest(config: SourceConfig, recipe: Recipe, layer: int, limits: Limits) -> int:
    """Parameters of the smallest MLP that a layer may become: of its narrowest width that has what the recipe fixes, as
    every form needs more for more neurons."""
    for width in reversed(layer_widths(config, recipe, layer)):
        every = {name: _projections(config, recipe, layer, name, width) for name in PROJECTIONS}
        offered = [_allowed(own, limits.get((layer, name)), recipe.block) for name, own in every.items()]
        if all(offered):
            break
    return sum(min(p.parameters(config.hidden, width) for p in own) for own in offered)


Choices = tuple[list[Mlp], Options]


class _Offers:
    """What one layer may become: the loss of dropping, and costs and losses of every projection, by width."""

    def __init__(
        self, config: SourceConfig, recipe: Recipe, layer: int, curve: Curve, energies: Energies, limits: Limits
    ) -> None:
        self._drop: dict[int, float] = {}
        self._offered: dict[int, list[list[Projection]]] = {}
        self._options: dict[int, list[Options]] = {}
        for k, width in enumerate(curve.widths):
            every = {name: _projections(config, recipe, layer, name, width) for name in PROJECTIONS}
            offered = [_allowed(own, limits.get((layer, name)), recipe.block) for name, own in every.items()]
            if all(offered):
                self._drop[width], self._offered[width] = curve.loss[k], offered
                self._options[width] = [
                    priced(config.hidden, width, own, curve.shares.get(name, [1.0] * (k + 1))[k] * energy)
                    for name, own in zip(PROJECTIONS, offered, strict=True)
                    for energy in [energies.get((layer, name), NOTHING)]
                ]

    def undominated(self) -> Choices:
        """Those that are looked at."""
        mlps, cost, loss = [], [], []
        for width, options in self._options.items():
            found, picks = together(options)
            cost.append(found.cost)
            loss.append(found.loss + self._drop[width])
            mlps += [(width, row) for row in picks.tolist()]
        every = Options(np.concatenate(cost), np.concatenate(loss))
        best = undominated(every)
        best = best[thinned(take(every, best), MOST)]
        return [self._mlp(*mlps[i]) for i in best], take(every, best)

    def _mlp(self, width: int, row: Sequence[int]) -> Mlp:
        offered = zip(PROJECTIONS, self._offered[width], row, strict=True)
        return mlp_of(width, {name: own[i] for name, own, i in offered})

    def loss(self, mlp: Mlp) -> float | None:
        """Of a choice; None where the layer does not have it."""
        if mlp.width not in self._drop:
            return None
        found = self._drop[mlp.width]
        for (_, p), own, options in zip(mlp.items(), self._offered[mlp.width], self._options[mlp.width], strict=True):
            if p not in own:
                return None
            found += float(options.loss[own.index(p)])
        return found


def _projections(config: SourceConfig, recipe: Recipe, layer: int, name: str, width: int) -> list[Projection]:
    """What a projection may be at a width; nothing where a rank that is fixed does not fit."""
    fixed, groups, form = fixed_projection(config, recipe, layer, name), Groups.of(config, recipe), named(recipe.form)
    part = width // groups.count
    if isinstance(fixed, LowRank):
        own = fixed.rank // groups.count
        return [fixed] if own <= min(config.hidden, part) and form.fits(own, config.hidden, part, recipe.block) else []
    if fixed is not None:
        return [fixed]
    ranks = choices(form, config.hidden, part, recipe.block)
    return [*(form.planned(rank, groups.count) for rank in ranks), DENSE]


def _allowed(offered: list[Projection], limit: int | None, block: int) -> list[Projection]:
    """Those whose rank the weight has; dense where it has none of them."""
    return list(dict.fromkeys(within(p, limit, block) for p in offered))


def _common(config: SourceConfig, offers: Sequence[_Offers], found: Sequence[Choices], kept: int) -> list[Choices]:
    """The same choices for every layer: what any layer takes at prices around the one that fits the budget, and its
    cheapest. What a layer may not become costs more than all losses together."""
    price = price_of_a_parameter([options for _, options in found], kept)
    wanted: dict[Mlp, None] = {}
    for mlps, options in found:
        rows = {int((options.loss + price * step * options.cost).argmin()) for step in PRICES}
        wanted |= {mlps[i]: None for i in sorted({0, *rows})}
    mlps = list(wanted)
    cost = np.array([mlp.parameters(config.hidden) for mlp in mlps], dtype=np.int64)
    losses = [[offer.loss(mlp) for mlp in mlps] for offer in offers]
    penalty = 1.0 + sum(max(value for value in row if value is not None) for row in losses)
    return [(mlps, Options(cost, np.array([penalty if value is None else value for value in row]))) for row in losses]


def curve_of(stages: Sequence[int], losses: NDArray[np.float64], shares: Mapping[str, Sequence[float]]) -> Curve:
    """The curve of an elimination, whose losses have an entry for every neuron that went."""
    gone = [stages[0] - stage for stage in stages]
    return Curve(tuple(stages), [float(losses[d - 1]) if d else 0.0 for d in gone], dict(shares))


def all_stay(config: SourceConfig) -> Curve:
    """That of a layer that drops nothing."""
    return Curve((config.intermediate,), [0.0], {})
