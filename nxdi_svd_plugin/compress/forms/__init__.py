"""How a projection may be stored low rank: one file a form, found by its name.

A file of this folder that has FORM is a form. What is stored is always a `LowRank` (stored/projection.py), so nothing
outside the file asks which form it is. A form imports torch when it stores: plans do without.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import suggestion
from nxdi_svd_plugin.stored.projection import LowRank

if TYPE_CHECKING:
    from torch import Tensor


class Truncation(Protocol):
    """The best rank-r matrix W' of one group of a projection: near [H, r] far [r, n], float64.

    The rows of far are the whitened coordinates of the columns.
    """

    @property
    def near(self) -> Tensor:
        """[H, r]; may be made only when asked for."""

    @property
    def far(self) -> Tensor:
        """[r, n]."""

    @property
    def split(self) -> Tensor | None:
        """[r], by which a pair divides near and multiplies far to share the singular values out (Eq. 6-8); None where
        they are shared out already."""

    def columns(self, at: Tensor) -> Tensor:
        """[H, len(at)] of W'."""


@dataclass(frozen=True)
class Factors:
    """A truncation that has its factors."""

    near: Tensor
    far: Tensor
    split: Tensor | None

    def columns(self, at: Tensor) -> Tensor:
        """[H, len(at)] of W'."""
        return self.near @ self.far[:, at]


@dataclass(frozen=True)
class Stored:
    """What a form makes of one layer.

    projections: as stored. factors: near [H, r] and the columns of far that are stored, of every projection.
    order: stored intermediate neuron -> source neuron, a permutation inside each group; None where the source's order
    was kept.
    measured: numbers for the report, by projection.
    """

    projections: dict[str, LowRank]
    factors: dict[str, tuple[Tensor, Tensor]]
    order: Tensor | None
    measured: dict[str, dict[str, float]]


class Form(Protocol):
    """A way to store projections low rank; its m x n matrix is one group of a projection, and so is its rank."""

    def cost(self, m: int, n: int, rank: float) -> float:
        """Numbers stored for an m x n matrix, also between whole ranks (Eq. 5)."""

    def planned(self, rank: int, groups: int = 1) -> LowRank:
        """The stored form of `groups` such matrices side by side before any weight was read."""

    def fits(self, rank: int, m: int, n: int, block: int) -> bool:
        """Whether an explicit rank can be stored."""

    def store(self, truncated: Iterable[tuple[str, Sequence[Truncation]]], part: int, block: int) -> Stored:
        """Store the low-rank projections of one layer.

        Args:
            truncated: the projections in their order, each with its groups, all of one rank; made one projection at a
                time, so a form keeps none of them. part: neurons of a group.
        Raises:
            SvdError: a matrix has a smaller rank than planned.
        """


def names() -> list[str]:
    """The known forms."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> Form:
    """The form of a recipe.

    Raises:
        RecipeError: no such form.
    """
    if name not in names():
        raise RecipeError(f"form is {name!r}; expected one of {', '.join(names())}{suggestion(name, names())}")
    form: Form = importlib.import_module(f"{__name__}.{name}").FORM
    return form


def choices(form: Form, m: int, n: int, block: int) -> list[int]:
    """Every multiple of the block that saves numbers, below full rank."""
    return [rank for rank in range(block, min(m, n), block) if form.cost(m, n, rank) < m * n]
