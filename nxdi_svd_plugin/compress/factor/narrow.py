"""A layer that drops neurons: which go first and what that costs, and its weights and statistics once they are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.statistics import FAR, NEAR, SQUARES, Statistics
from nxdi_svd_plugin.factorize.dropping import eliminate, fitted_loss, kept_shares, precision, refit
from nxdi_svd_plugin.factorize.seen import seen_by_kept
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS

ORDER, LOSSES = "order", "losses"
DOWN = "down_proj"
WRITES = tuple(name for name in PROJECTIONS if name != DOWN)
Weights = Callable[[str], Tensor]
"""Projection name to torch weight [out, in]."""


def elimination(
    recipe: Recipe, sums: Statistics, inner: Tensor, tokens: int, weights: Weights, stages: Sequence[int]
) -> dict[str, Tensor]:
    """What is kept of it: `order` and `losses` of the neurons that may go, and by projection what share of the energies
    of gate and up is left at every stage.

    Args:
        inner: sum z z^T [I, I]; it is overwritten.
    """
    gradients = sums.sums[NEAR[DOWN]] / tokens
    inner = inner.to(precision(len(inner), recipe.damping)).div_(tokens)
    found = eliminate(inner, gradients, weights(DOWN).T, stages, recipe.tp_degree, recipe.damping)
    shares = {name: _shares(recipe, sums, weights(name), name, found.order, stages) for name in WRITES}
    return {ORDER: found.order, LOSSES: found.losses, **shares}


def _shares(
    recipe: Recipe, sums: Statistics, weight: Tensor, name: str, order: Tensor, stages: Sequence[int]
) -> Tensor:
    near, squares = sums.sums[NEAR[name]], _squares(sums, name)
    near = near + recipe.damping * near.diagonal().mean() * torch.eye(len(near), dtype=near.dtype, device=near.device)
    squares = squares + recipe.damping * squares.mean()
    shares = kept_shares(weight.T.to(torch.float32), near, squares, order, stages)
    return torch.tensor(shares, dtype=torch.float64)


def _squares(sums: Statistics, name: str) -> Tensor:
    """[I] sum of squares of the far side."""
    if SQUARES[name] in sums.sums:
        return sums.sums[SQUARES[name]]
    return sums.sums[FAR[name]].diagonal(dim1=1, dim2=2).flatten()


@dataclass(frozen=True)
class Narrowed:
    """The weights of a layer with the neurons that stay.

    kept: [k] their numbers in the source, group by group. weights: torch's by projection, down's fitted again in
    float32. loss: nats per token that this is expected to cost.
    """

    kept: Tensor
    weights: dict[str, Tensor]
    loss: float


def narrowed(
    recipe: Recipe, sums: Statistics, inner: Tensor, tokens: int, weights: Weights, order: Tensor, width: int
) -> Narrowed:
    """The layer without the first neurons of `order`, down to `width`.

    Args:
        inner: sum z z^T [I, I].
    """
    stays = torch.ones(len(inner), dtype=torch.bool)
    stays[order[: len(inner) - width]] = False
    kept = torch.nonzero(stays).flatten().to(inner.device)
    wide, rows = inner.to(precision(len(inner), recipe.damping)), weights(DOWN).T
    down = refit(wide, rows, kept, recipe.damping)
    loss = fitted_loss(wide, sums.sums[NEAR[DOWN]] / tokens, rows, kept, down, recipe.damping) / tokens
    return Narrowed(kept, {name: weights(name)[kept] for name in WRITES} | {DOWN: down.T.to(torch.float32)}, loss)


def kept_sums(recipe: Recipe, sums: Statistics, inner: Tensor, weights: Weights, layer: Narrowed) -> Statistics:
    """The statistics that the narrowed layer would have had.

    The near sides stay what they are: the input by nature, the gradients at the output to first order. Down's far side
    is exact; so is that of gate and up where groups are narrow, elsewhere it is that of factorize/seen.py.

    Args:
        inner: sum z z^T [I, I]. weights: of the source.
    """
    groups = Groups(recipe.tp_degree, len(sums.sums["inputs"]), len(inner))
    own = layer.kept.reshape(groups.count, -1)
    left = dict(sums.sums)
    for name in WRITES:
        left[FAR[name]] = _far(sums, groups, name, weights(name), own)
    rows = layer.weights[DOWN].T.reshape(groups.count, own.shape[1], -1)
    left[FAR[DOWN]] = torch.stack([_outputs(inner, groups, w, k) for w, k in zip(rows, own, strict=True)])
    left |= {key: left[key][layer.kept] for key in SQUARES.values() if key in left}
    return Statistics(left)


def _far(sums: Statistics, groups: Groups, name: str, weight: Tensor, own: Tensor) -> Tensor:
    """Gate's or up's far covariance of what stays, group by group; own: [g, k / g]."""
    wide = READS[name].hidden_first(weight).to(torch.float32)
    found = []
    for far, at, kept in zip(sums.sums[FAR[name]], groups.slices(), own, strict=True):
        inside = kept - at.start
        if groups.narrow:
            found.append(far[inside[:, None], inside])
        else:
            found.append(seen_by_kept(far, wide[:, at], _squares(sums, name)[at], inside))
    return torch.stack(found)


def _outputs(inner: Tensor, groups: Groups, down: Tensor, own: Tensor) -> Tensor:
    """What a group adds to the output, y y^T, or where groups are narrow z z^T; down: its rows [k / g, H]."""
    square = inner[own[:, None], own]
    if groups.narrow:
        return square.to(torch.float64)
    found = (down.T @ (square @ down)).to(torch.float64)
    return (found + found.T) / 2
