"""The interpolative form: r of the intermediate neurons are kept, the others are combinations of them.

W' = near [I | C] up to the order of the neurons (factorize/interpolative.py), r (m + n - r) numbers for rank r. The
three projections of a layer share one order, so their pivots are chosen together: those of gate first, then up's, then
down's, each in whole blocks of the cells that the earlier ones have cut (stored/cells.py).
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def planned(self, rank: int) -> LowRank:
        """Which neurons are pivots is decided when they are stored."""
        return LowRank(rank, ((0, rank),))

    def fits(self, rank: int, m: int, n: int, block: int) -> bool:
        """Whole blocks of pivots, below the full rank."""
        return rank < min(m, n) and rank % block == 0

    def store(self, truncated: Mapping[str, Truncation], width: int, block: int) -> Stored:
        """Choose the pivots of all three projections, and the order that makes each set a few runs."""
        from nxdi_svd_plugin.stored.order import common_order

        found, sets = _choose_pivots(truncated, width, block)
        order, runs = common_order(sets, width)
        where = dict(zip(PROJECTIONS, runs, strict=True))
        return Stored(
            {name: LowRank(t.near.shape[1], where[name]) for name, t in truncated.items()},
            {name: _factors(t, found[name], order, where[name]) for name, t in truncated.items()},
            order,
            {name: {"growth": f.growth, "limited": f.limited} for name, f in found.items()},
        )


def _choose_pivots(
    truncated: Mapping[str, Truncation], width: int, block: int
) -> tuple[dict[str, Interpolation], list[Tensor]]:
    """Pivots of gate, then up, then down, each in whole blocks of the cells that the earlier ones have cut."""
    import torch

    from nxdi_svd_plugin.factorize.interpolative import interpolate
    from nxdi_svd_plugin.stored.order import cells

    none = torch.empty(0, dtype=torch.long)
    sets, found = [none, none, none], {}
    for i, name in enumerate(PROJECTIONS):
        if name in truncated:
            classes = [cell for cell in cells(sets, width) if len(cell)]
            try:
                found[name] = interpolate(truncated[name].far, classes, block)
            except SvdError as error:
                raise SvdError(f"{name}: {error}. Keep it dense, lower its rank or use the pair form") from error
            sets[i] = found[name].pivots.cpu()
    return found, sets


def _factors(t: Truncation, found: Interpolation, order: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """near at the pivots and C, with the neurons in the stored order."""
    import torch

    from nxdi_svd_plugin.stored.order import indices

    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[indices(runs)] = True
    pivots, others = order[kept].to(t.far.device), order[~kept].to(t.far.device)
    return t.near @ t.far[:, pivots], found.in_order(others, pivots)


FORM: Form = Interpolative()
