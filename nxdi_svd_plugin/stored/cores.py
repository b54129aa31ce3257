"""How the cores of a tensor-parallel degree share the groups of an MLP, and what one of them has of a group.

With as many cores as groups each has a group of its own: nothing is repeated and nothing but the sum at the end is
exchanged. Fewer cores have several whole groups each. More cores share a group as in the paper's Fig. 4: near is whole
on each of them, far is split over the group's neurons, padded with zeros to equally many (SiLU(0) * 0 = 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import LowRank


@dataclass(frozen=True)
class Sharing:
    """groups: on one core. cores: that one group is on. One of the two is 1."""

    groups: int
    cores: int

    def held(self, core: int) -> range:
        """The groups on a core."""
        first = core * self.groups // self.cores
        return range(first, first + self.groups)

    def seat(self, core: int) -> int:
        """The place of a core among those of its group."""
        return core % self.cores


def fits(groups: int, tp: int) -> bool:
    """Whether so many groups go evenly on `tp` cores: one number divides the other."""
    return groups % tp == 0 or tp % groups == 0


def sharing(groups: int, tp: int) -> Sharing:
    """How `tp` cores share so many groups.

    Raises:
        SvdError: neither number divides the other.
    """
    if not fits(groups, tp):
        fitting = ", ".join(str(degree) for degree in range(1, groups + 1) if groups % degree == 0)
        raise SvdError(
            f"{groups} groups of neurons do not go evenly on {tp} cores; use tensor-parallel degree {fitting} or a "
            f"multiple of {groups}, or compress with --tp-degree {tp}"
        )
    return Sharing(max(1, groups // tp), max(1, tp // groups))


def share_of(mlp: Mlp, tp: int) -> int:
    """The neurons that one of `tp` cores has of a group, padding included.

    Raises:
        SvdError: as `sharing`.
    """
    return -(-mlp.width // mlp.groups // sharing(mlp.groups, tp).cores)


def neurons_of(mlp: Mlp, tp: int) -> int:
    """The neurons on one of `tp` cores, padding included.

    Raises:
        SvdError: as `sharing`.
    """
    return share_of(mlp, tp) * sharing(mlp.groups, tp).groups


def repeated(layers: Mapping[int, Mlp], hidden: int, tp: int) -> int:
    """Numbers on one of `tp` cores beyond its share, because the near matrix of a group is whole on all its cores.

    Raises:
        SvdError: as `sharing`.
    """
    spare = 0
    for mlp in layers.values():
        cores = sharing(mlp.groups, tp).cores
        near = sum(hidden * p.rank // p.groups for _, p in mlp.items() if isinstance(p, LowRank))
        spare += near - near // cores
    return spare
