"""The interpolative form: r of the intermediate neurons are kept, the others are combinations of them.

W' = near [I | C] up to the order of the neurons (factorize/interpolative.py), r (m + n - r) numbers for rank r. The
three projections of a layer share one order, so their pivots are chosen together: those of gate first, then up's, then
down's, each in whole blocks of the cells that the earlier ones have cut (stored/cells.py). Every group has an order and
pivots of its own, in cells of the same sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def store(self, truncated: Mapping[str, Sequence[Truncation]], part: int, block: int) -> Stored:
        """Choose the pivots of all three projections, and the order that makes each set a few runs."""
        import torch

        from nxdi_svd_plugin.stored.order import common_order

        found, sets = _choose_pivots(truncated, part, block)
        orders, (runs, *_) = zip(*(common_order(own, part) for own in sets), strict=True)  # runs alike in all groups
        where = dict(zip(PROJECTIONS, runs, strict=True))
        return Stored(
            {name: LowRank(len(own) * len(own[0].far), where[name], len(own)) for name, own in truncated.items()},
            {name: _factors(own, found[name], orders, where[name]) for name, own in truncated.items()},
            torch.cat([order + j * part for j, order in enumerate(orders)]),
            {name: _worst(own) for name, own in found.items()},
        )


def _worst(groups: Sequence[Interpolation]) -> dict[str, float]:
    """What the report says: the largest of all groups."""
    return {"growth": max(f.growth for f in groups), "limited": max(f.limited for f in groups)}


def _choose_pivots(
    truncated: Mapping[str, Sequence[Truncation]], part: int, block: int
) -> tuple[dict[str, list[Interpolation]], list[list[Tensor]]]:
    """Pivots of gate, then up, then down, each in whole blocks of the cells that the earlier ones have cut, and the
    three sets of every group."""
    import torch

    from nxdi_svd_plugin.factorize.interpolative import interpolate
    from nxdi_svd_plugin.stored.order import cells

    none = torch.empty(0, dtype=torch.long)
    sets = [[none, none, none] for _ in next(iter(truncated.values()))]
    found = {}
    for i, name in enumerate(PROJECTIONS):
        if name in truncated:
            classes = [[cell for cell in cells(own, part) if len(cell)] for own in sets]
            try:
                found[name] = interpolate([t.far for t in truncated[name]], classes, block)
            except SvdError as error:
                raise SvdError(f"{name}: {error}. Keep it dense, lower its rank or use the pair form") from error
            for own, one in zip(sets, found[name], strict=True):
                own[i] = one.pivots.cpu()
    return found, sets


def _factors(
    groups: Sequence[Truncation], found: Sequence[Interpolation], orders: Sequence[Tensor], runs: Runs
) -> tuple[Tensor, Tensor]:
    """near at the pivots and C, with the neurons in the stored order, group beside group."""
    import torch

    from nxdi_svd_plugin.stored.order import indices

    near, far = [], []
    for t, one, order in zip(groups, found, orders, strict=True):
        kept = torch.zeros(len(order), dtype=torch.bool)
        kept[indices(runs)] = True
        pivots, others = order[kept].to(t.far.device), order[~kept].to(t.far.device)
        near.append(t.columns(pivots))
        far.append(one.in_order(others, pivots))
    return torch.cat(near, 1), torch.cat(far, 1)


FORM: Form = Interpolative()
