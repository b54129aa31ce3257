"""Which changes of a layer are tried alone, at which rank or width, and what their measured losses do to the predicted.

The prediction is of second order, on the calibration text: dropping neurons is off by another factor than low rank.
What one layer changed alone costs on another text, over what was predicted for it there, is taken for every layer, and
the median over the layers multiplies the losses of this kind of change in all of them, at every rank and width. LEMS
(lems-svd/lems 9eaf262) scales the losses of every matrix by its own measured one. Here a layer's own ratio says little:
it is of one rank or width, and where few directions were predicted to cost most it is far from that of the rank that is
chosen in the end (SmolLM2's layer 11: 0.05 where all is truncated, 1.1 at what is chosen); with a scale for each layer
six of seven texts became worse (docs/accuracy.md).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.forms import choices, named
from nxdi_svd_plugin.compress.plan.budget import Energies, budget
from nxdi_svd_plugin.compress.plan.ranks import fixed_projection
from nxdi_svd_plugin.compress.plan.widths import Curve, layer_widths
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.report.scaling import DROP, LOW_RANK, Trial
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank

SAMPLES, LENGTH = 2, 128
"""Windows of the text, and tokens in each, or the calibration's where those are shorter."""
NARROW = 0.5
"""Share of the neurons that is tried: layers that lose any lose many, of SmolLM2 at 0.20 a sixth to two thirds."""
NOTHING = 1e-6
"""Nats per token; a smaller prediction is not compared with what float32 logits can show."""


@dataclass(frozen=True)
class Change:
    """Of one layer. ranks: of every group, of the projections that become low rank. width: neurons that stay; only
    dropping has one."""

    kind: str
    ranks: Mapping[str, int]
    width: int | None = None


def window_length(recipe: Recipe) -> int:
    """Tokens of a window."""
    return min(LENGTH, recipe.calibration.length)


def changes(config: SourceConfig, recipe: Recipe, layer: int) -> list[Change]:
    """What is tried of a layer: all that the recipe leaves free at the one rank that is nearest to its ratio; then the
    width that is nearest to NARROW, where neurons may go."""
    fixed = {name: fixed_projection(config, recipe, layer, name) for name in PROJECTIONS}
    ranks = {name: p.rank // p.groups for name, p in fixed.items() if isinstance(p, LowRank)}
    rank, free = reference_rank(config, recipe), [name for name, p in fixed.items() if p is None]
    found = []
    if free and rank is not None:
        ranks |= dict.fromkeys(free, rank)
    if ranks:
        found.append(Change(LOW_RANK, ranks))
    if stages := layer_widths(config, recipe, layer)[1:]:
        found.append(Change(DROP, {}, min(stages, key=lambda width: abs(width - NARROW * config.intermediate))))
    return found


def reference_rank(config: SourceConfig, recipe: Recipe) -> int | None:
    """Of every group: what stores most nearly the share that the budget leaves; None where no rank saves numbers."""
    form, groups = named(recipe.form), Groups.of(config, recipe)
    kept = _kept(config, recipe) * groups.hidden * groups.part
    ranks = choices(form, groups.hidden, groups.part, recipe.block)
    return min(ranks, key=lambda rank: abs(form.cost(groups.hidden, groups.part, rank) - kept), default=None)


def _kept(config: SourceConfig, recipe: Recipe) -> float:
    """Share of the MLP parameters that the budget leaves."""
    return budget(config, recipe) / config.mlp_parameters


def scales(losses: Sequence[tuple[str, float, float]]) -> list[float]:
    """What the losses of each change are multiplied by: the median over all layers of measured / predicted for changes
    of its kind; 1 where none of them was predicted to cost anything.

    Args:
        losses: kind, predicted and measured, of every change.
    """
    ratios: dict[str, list[float]] = {kind: [] for kind, _, _ in losses}
    for kind, predicted, measured in losses:
        if predicted > NOTHING:
            ratios[kind].append(measured / predicted)
    return [statistics.median(ratios[kind] or [1.0]) or 1.0 for kind, _, _ in losses]


def scaled_energies(energies: Energies, trials: Iterable[Trial]) -> Energies:
    """The energies of every projection times the scale of its layer."""
    scales = {trial.layer: trial.scale for trial in trials if trial.kind == LOW_RANK}
    return {(layer, name): energy * scales.get(layer, 1.0) for (layer, name), energy in energies.items()}


def scaled_curves(curves: Mapping[int, Curve], trials: Iterable[Trial]) -> dict[int, Curve]:
    """The losses of dropping times the scale of their layer."""
    scales = {trial.layer: trial.scale for trial in trials if trial.kind == DROP}
    return {
        layer: replace(curve, loss=[loss * scales.get(layer, 1.0) for loss in curve.loss])
        for layer, curve in curves.items()
    }
