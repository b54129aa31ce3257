"""The interpolative form: r of the intermediate neurons are kept, the others are combinations of them.

W' = near [I | C] up to the order of the neurons (factorize/interpolative.py), r (m + n - r) numbers for rank r. The
three projections of a layer share one order, so their pivots are chosen together: those of gate first, then up's, then
down's, each in whole blocks of the cells that the earlier ones have cut (stored/cells.py). Every group has an order and
pivots of its own, in cells of the same sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nxdi_svd_plugin.compress.forms import Form, Stored, Truncation
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import Runs

if TYPE_CHECKING:
    from torch import Tensor

    from nxdi_svd_plugin.factorize.interpolative import Interpolation


class Interpolative:
    """r (m + n - r) numbers for rank r."""

    def cost(self, m: int, n: int, rank: float) -> float:
        """The identity block of r x r is not stored."""
        return rank * (m + n - rank)

    def planned(self, rank: int, groups: int = 1) -> LowRank:
        """Which neurons are pivots is decided when they are stored."""
        return LowRank(groups * rank, ((0, rank),), groups)

    def fits(self, rank: int, m: int, n: int, block: int) -> bool:
        """Whole blocks of pivots, below the full rank."""
        return rank < min(m, n) and rank % block == 0

    def store(self, truncated: Iterable[tuple[str, Sequence[Truncation]]], part: int, block: int) -> Stored:
        """Choose the pivots of all three projections, and the order that makes each set a few runs."""
        import torch

        from nxdi_svd_plugin.stored.order import common_order

        found, sets = _chosen(truncated, part, block)
        orders, (runs, *_) = zip(*(common_order(own, part) for own in sets), strict=True)  # runs alike in all groups
        where = dict(zip(PROJECTIONS, runs, strict=True))
        projections = {
            name: LowRank(len(own) * len(own[0].found.pivots), where[name], len(own)) for name, own in found.items()
        }
        measured = {name: _worst(own) for name, own in found.items()}
        order = torch.cat([own + j * part for j, own in enumerate(orders)])
        factors = {name: _factors(found.pop(name), orders, where[name]) for name in projections}
        return Stored(projections, factors, order, measured)


@dataclass(frozen=True)
class Kept:
    """What is kept of one group of a projection. near: [H, r], the columns of W' at the pivots, ascending."""

    found: Interpolation
    near: Tensor


def _worst(groups: Sequence[Kept]) -> dict[str, float]:
    """What the report says: the largest of all groups."""
    return {
        "growth": max(one.found.growth for one in groups),
        "limited": max(one.found.limited for one in groups),
    }


def _chosen(
    truncated: Iterable[tuple[str, Sequence[Truncation]]], part: int, block: int
) -> tuple[dict[str, list[Kept]], list[list[Tensor]]]:
    """Pivots of gate, then up, then down, each in whole blocks of the cells that the earlier ones have cut, and the
    three sets of every group."""
    import torch

    none = torch.empty(0, dtype=torch.long)
    found: dict[str, list[Kept]] = {}
    sets: list[list[Tensor]] = []
    for name, groups in truncated:
        sets = sets or [[none, none, none] for _ in groups]
        chosen = _pivots(name, [t.far for t in groups], sets, part, block)
        found[name] = [Kept(one, t.columns(one.pivots)) for t, one in zip(groups, chosen, strict=True)]
        for own, one in zip(sets, chosen, strict=True):
            own[PROJECTIONS.index(name)] = one.pivots.cpu()
        del groups  # before the next projection's are made
    return found, sets


def _pivots(
    name: str, matrices: Sequence[Tensor], sets: Sequence[Sequence[Tensor]], part: int, block: int
) -> list[Interpolation]:
    """Those of every group of one projection, in the cells that `sets` cut."""
    from nxdi_svd_plugin.factorize.interpolative import interpolate
    from nxdi_svd_plugin.stored.order import cells

    classes = [[cell for cell in cells(own, part) if len(cell)] for own in sets]
    try:
        return interpolate(matrices, classes, block)
    except SvdError as error:
        raise SvdError(f"{name}: {error}. Keep it dense, lower its rank or use the pair form") from error


def _factors(groups: Sequence[Kept], orders: Sequence[Tensor], runs: Runs) -> tuple[Tensor, Tensor]:
    """near at the pivots and C, with the neurons in the stored order, group beside group."""
    import torch

    from nxdi_svd_plugin.stored.order import indices

    near, far = [], []
    for one, order in zip(groups, orders, strict=True):
        kept = torch.zeros(len(order), dtype=torch.bool)
        kept[indices(runs)] = True
        pivots, others = order[kept].to(one.near.device), order[~kept].to(one.near.device)
        near.append(one.near[:, torch.searchsorted(one.found.pivots, pivots)])
        far.append(one.found.in_order(others, pivots))
    return torch.cat(near, 1), torch.cat(far, 1)


FORM: Form = Interpolative()
