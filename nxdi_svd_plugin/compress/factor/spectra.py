"""The eigendecomposition of a layer's projections: made once, from statistics that are read once, and kept on disk.

`decompose` gives what is kept: energies and eigenvectors of every group, and those statistics that the factors need
again. `restore` makes of it what a projection is truncated with at any rank: by the paper's formulas (whitened.py) for
the paper's recipe, by the two-sided ones for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, kept_names
from nxdi_svd_plugin.compress.factor.sides import Decomposed, Sides
from nxdi_svd_plugin.compress.factor.two_sided import DoublyWhitened
from nxdi_svd_plugin.compress.factor.whitened import Whitened
from nxdi_svd_plugin.compress.forms import Truncation
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.projection import READS

Measured = dict[str, float | None]


class Decomposition(Protocol):
    """What one group of a projection is truncated with."""

    @property
    def energy(self) -> Tensor:
        """[a], descending: what dropping each direction costs, in the objective's unit."""

    @property
    def relative_ridge(self) -> float | None:
        """The ridge, in units of the mean diagonal."""

    def truncated(self, rank: int) -> Truncation:
        """The best matrix of this rank."""

    def loss(self, rank: int) -> float | None:
        """Predicted nats per token of this rank; None where the objective is no loss."""

    def output(self, rank: int) -> tuple[float, float]:
        """Energy that this rank drops of the group's output on the calibration tokens, and that of the output."""


class Objective(Protocol):
    """The formulas of a recipe, for the groups of one layer."""

    def decompose(self, sides: Sides, vectors: bool = True) -> Decomposed:
        """Of one group, to be kept; with `vectors` false its energies are all that counts."""

    def restore(self, sides: Sides, kept: Decomposed) -> Decomposition:
        """What the group is truncated with."""


def objective(recipe: Recipe) -> Objective:
    """That of a recipe."""
    return Whitened() if recipe.is_paper else DoublyWhitened(recipe)


def groups_of(recipe: Recipe, sums: Statistics, tokens: int, name: str, weight: Tensor) -> Iterator[Sides]:
    """The groups of a projection; `weight` is torch's [out, in]. The paper's formulas take sums, the others means."""
    wide: Tensor = READS[name].hidden_first(weight)
    hidden, neurons = wide.shape
    groups = Groups(recipe.tp_degree, hidden, neurons, hidden_sums=sums.sums["outputs"].shape[1] == hidden)
    statistics = sums if recipe.is_paper else sums.per_token(tokens)
    return (Sides(groups, statistics, name, k, wide[:, at]) for k, at in enumerate(groups.slices()))


def decompose(
    recipe: Recipe, sums: Statistics, tokens: int, weights: Iterable[tuple[str, Tensor]], vectors: bool = True
) -> dict[str, Tensor]:
    """What is kept of a layer: `<projection>.<group>.energy`, `.vectors` and `.numbers`, and the statistics that
    the factors need.

    Args:
        sums: over all tokens. weights: (projection, torch weight [out, in]) of those that may become low rank.
        vectors: false where only `energies` reads what is kept.
    """
    kept: dict[str, Tensor] = {}
    one = objective(recipe)
    for name, weight in weights:
        for sides in groups_of(recipe, sums, tokens, name, weight):
            found, stem = one.decompose(sides, vectors), f"{name}.{sides.group}"
            kept |= {key: sums.sums[key] for key in kept_names(sides.groups, recipe.objective)}
            numbers = [torch.nan if number is None else number for number in found.numbers]
            kept |= {f"{stem}.energy": found.energy, f"{stem}.vectors": found.vectors}
            kept[f"{stem}.numbers"] = torch.tensor(numbers, dtype=torch.float64)
    return kept


def energies(recipe: Recipe, kept: Mapping[str, Tensor], name: str) -> Tensor:
    """[a] what the i-th direction of all groups of a projection together costs, out of what `decompose` gave."""
    first, *others = (kept[f"{name}.{group}.energy"] for group in range(recipe.tp_degree))
    return sum(others, first)


def restore(
    recipe: Recipe, kept: Mapping[str, Tensor], tokens: int, name: str, weight: Tensor
) -> Iterator[Decomposition]:
    """The groups of one projection out of what `decompose` gave, one in memory at a time."""
    one, sums = objective(recipe), Statistics({key: t for key, t in kept.items() if "." not in key})
    for sides in groups_of(recipe, sums, tokens, name, weight):
        energy, vectors, found = (kept[f"{name}.{sides.group}.{part}"] for part in ("energy", "vectors", "numbers"))
        numbers = tuple(None if number != number else number for number in found.tolist())
        yield one.restore(sides, Decomposed(energy, vectors, numbers))


def forget(recipe: Recipe, kept: dict[str, Tensor], name: str) -> None:
    """Drop the eigenvectors of a projection whose groups are all restored and truncated."""
    for group in range(recipe.tp_degree):
        del kept[f"{name}.{group}.vectors"]


def truncated(groups: Iterable[Decomposition], rank: int) -> tuple[list[Truncation], Measured]:
    """Every group at this rank of its own, and the numbers of the report.

    Groups of down add up to one output; what they drop of it counts as uncorrelated, as no covariance of two groups is
    summed.
    """
    found, rows, ridges, losses = [], [], [], []
    for group in groups:
        found.append(group.truncated(rank))
        rows.append((*group.output(rank), float(group.energy[rank:].sum()), float(group.energy.sum())))
        ridges.append(group.relative_ridge)
        losses.append(group.loss(rank))
    dropped, output, discarded, energy = (sum(column) for column in zip(*rows, strict=True))
    return found, {
        "relative_error": (max(dropped, 0.0) / output) ** 0.5 if output > 0 else 0.0,
        "discarded": discarded,
        "energy": energy,
        "relative_ridge": max((ridge for ridge in ridges if ridge is not None), default=None),
        "predicted_loss": sum(loss for loss in losses if loss is not None) if losses[0] is not None else None,
    }
