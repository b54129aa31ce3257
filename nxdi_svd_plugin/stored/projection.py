"""How one MLP projection is stored: as it is, or through a rank space in which some neurons may be kept.

A projection joins the hidden side (H, near) and the intermediate side (w neurons, far). Stored low rank with g groups,
its weight is, as a matrix [H, w], in the k-th of g equal slices of w

    near[:, k] far[k]      near [H, r], its k-th r/g columns      far [r/g, w - pivots], slice by slice

where far has the identity at the pivots and stores only its other columns. No pivots is the paper's pair U V (section
4.1), with pivots it is the interpolative form (docs/format.md). Gate and up apply near first, down applies far first;
on disk near and far are u and v, or c for a far with pivots, in the order in which they multiply a row vector:

    gate, up:  u = near [H, r]           v or c = far [r/g, w - pivots]
    down:      u or c = far transposed   v = near transposed [r, H]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.runs import Runs, length, parse_runs

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
DENSE_FORM, PAIR, INTERPOLATIVE = "dense", "pair", "interpolative"
FORMS = (DENSE_FORM, PAIR, INTERPOLATIVE)
FIRST, SECOND, COMBINATIONS = TENSORS = ("u", "v", "c")
"""Names on disk of a low-rank projection's tensors: the factor that a row vector meets first, the second, and a far
with pivots."""
GROWTH_LIMIT = 16.0
"""No number of a far matrix with pivots is larger: each multiplies the rounding of the kept neurons."""
Shape = tuple[int, int]
Matrix = TypeVar("Matrix", bound=Any)
"""Anything with `.T`: a torch tensor or a numpy array."""


class Side(Enum):
    """One side of a projection: hidden is near, intermediate is far."""

    HIDDEN = "hidden"
    INTERMEDIATE = "intermediate"

    def dims(self, hidden: int, width: int) -> Shape:
        """(in, out) of a projection that reads this side."""
        return (hidden, width) if self is Side.HIDDEN else (width, hidden)

    @property
    def weight_axis(self) -> int:
        """Axis of the intermediate neurons in the dense weight [out, in] of a projection that reads this side."""
        return 0 if self is Side.HIDDEN else 1

    def hidden_first(self, weight: Matrix) -> Matrix:
        """The dense weight [out, in] of a projection that reads this side as [H, w]; a view."""
        turned: Matrix = weight.T if self is Side.HIDDEN else weight
        return turned


READS = {"gate_proj": Side.HIDDEN, "up_proj": Side.HIDDEN, "down_proj": Side.INTERMEDIATE}
"""The side that a projection reads; it writes the other."""


@dataclass(frozen=True)
class Dense:
    """A projection that keeps its weight [out, in]."""

    form = DENSE_FORM

    def tensors(self, reads: Side, hidden: int, width: int) -> dict[str, Shape]:
        """Names (after `mlp.<projection>.`) and shapes on disk."""
        fan_in, fan_out = reads.dims(hidden, width)
        return {"weight": (fan_out, fan_in)}

    def parameters(self, hidden: int, width: int) -> int:
        """Numbers stored."""
        return hidden * width

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this projection."""
        return {"form": self.form}


@dataclass(frozen=True)
class LowRank:
    """A projection of rank r: near [H, r] and far [r / g, w - pivots].

    rank: r of all groups together, a multiple of `groups`.
    pivots: runs of neurons inside one of the g slices, the same in every slice, r / g neurons in all; none for a pair.
    groups: g, the equal slices of the intermediate side that are factored on their own.
    Raises:
        CheckpointError: numbers that do not fit each other.
    """

    rank: int
    pivots: Runs = ()
    groups: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.groups < 1 or self.rank % self.groups:
            raise CheckpointError(
                f"rank {self.rank} in {self.groups} groups: expected a rank of at least 1 that the groups divide"
            )
        if parse_runs(self.pivots) is None or length(self.pivots) not in (0, self.rank // self.groups):
            raise CheckpointError(
                f"rank {self.rank} in {self.groups} groups has pivots {list(self.pivots)}; expected none or ascending, "
                f"separate runs of {self.rank // self.groups} neurons in all"
            )

    @property
    def form(self) -> str:
        """The name of the form."""
        return INTERPOLATIVE if self.pivots else PAIR

    def shapes(self, hidden: int, width: int) -> tuple[Shape, Shape]:
        """Shapes of near and far.

        Raises:
            CheckpointError: slices of unequal width, or pivots beyond a slice.
        """
        part = width // self.groups
        if width % self.groups or (self.pivots and self.pivots[-1][1] > part):
            raise CheckpointError(
                f"{width} neurons in {self.groups} groups with pivots {list(self.pivots)}: expected equal slices, and "
                f"pivots inside the first {part} neurons"
            )
        return (hidden, self.rank), (self.rank // self.groups, width - self.groups * length(self.pivots))

    def names(self, reads: Side) -> tuple[str, str]:
        """Names of near and far on disk."""
        near, far = (FIRST, SECOND) if reads is Side.HIDDEN else (SECOND, FIRST)
        return near, COMBINATIONS if self.pivots else far

    def tensors(self, reads: Side, hidden: int, width: int) -> dict[str, Shape]:
        """Names (after `mlp.<projection>.`) and shapes on disk, in the order in which they multiply.

        Raises:
            CheckpointError: as `shapes`.
        """
        near, far = self.shapes(hidden, width)
        near_name, far_name = self.names(reads)
        if reads is Side.HIDDEN:
            return {near_name: near, far_name: far}
        return {far_name: far[::-1], near_name: near[::-1]}

    def to_disk(self, reads: Side, near: Matrix, far: Matrix) -> dict[str, Matrix]:
        """The tensors on disk of near and far."""
        near_name, far_name = self.names(reads)
        if reads is Side.HIDDEN:
            return {near_name: near, far_name: far}
        return {far_name: far.T, near_name: near.T}

    def from_disk(self, reads: Side, tensors: Mapping[str, Matrix]) -> tuple[Matrix, Matrix]:
        """near and far of the tensors on disk."""
        near, far = (tensors[name] for name in self.names(reads))
        return (near, far) if reads is Side.HIDDEN else (near.T, far.T)

    def parameters(self, hidden: int, width: int) -> int:
        """Numbers stored."""
        return sum(math.prod(shape) for shape in self.shapes(hidden, width))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this projection; the groups are the whole model's and stand beside the layers."""
        entry: dict[str, Any] = {"form": self.form, "rank": self.rank}
        return {**entry, "pivots": [list(run) for run in self.pivots]} if self.pivots else entry


Projection = Dense | LowRank
DENSE = Dense()


def parse_projection(entry: Any, groups: int) -> Projection:
    """A projection out of its JSON object.

    Raises:
        CheckpointError: an unknown form, a key that does not belong to the form, numbers that do not fit.
    """
    known = ", ".join(FORMS)
    if not isinstance(entry, Mapping) or entry.get("form") not in FORMS:
        found = entry.get("form") if isinstance(entry, Mapping) else entry
        raise CheckpointError(f"projection form {found!r} is unknown; this version reads {known}")
    form, rank, runs = entry["form"], entry.get("rank"), parse_runs(entry.get("pivots", ()))
    keys = {DENSE_FORM: {"form"}, PAIR: {"form", "rank"}, INTERPOLATIVE: {"form", "rank", "pivots"}}[form]
    if set(entry) != keys or runs is None or (form == INTERPOLATIVE) != bool(runs):
        raise CheckpointError(f"{dict(entry)!r} is no {form} projection; expected the keys {', '.join(sorted(keys))}")
    if form == DENSE_FORM:
        return DENSE
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise CheckpointError(f"rank {rank!r} of a {form} projection; expected a whole number")
    return LowRank(rank, runs, groups)
