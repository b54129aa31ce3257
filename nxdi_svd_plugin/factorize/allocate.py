"""Spend a parameter budget on the ranks that lower the predicted loss most.

    minimise sum_i loss_i(o_i)   subject to   sum_i cost_i(o_i) <= budget,   one option o_i for every matrix,

where an option is a rank (a multiple of the block) or "dense" (loss 0, cost m n). Losses are in nats per token from the
two-sided objective, so they compare across matrices. Solved exactly by dynamic programming over parameter units, which
keeps no table: the two halves of the matrices meet at the best share of the budget and are solved in the same way
(Hirschberg 1975), so memory does not grow with the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin.errors import RecipeError

MAX_UNITS = 400_000
Floats = NDArray[np.float64]
Priced = tuple[NDArray[np.int64], Floats]
"""Cost in units of the budget, and loss, of the options of one matrix."""


@dataclass(frozen=True)
class Options:
    """What one matrix may become: parameters stored (`cost`) and predicted loss in nats per token (`loss`)."""

    cost: NDArray[np.int64]
    loss: Floats

    def __post_init__(self) -> None:
        if len(self.cost) != len(self.loss) or not len(self.cost):
            raise RecipeError(f"{len(self.cost)} costs and {len(self.loss)} losses: expected one of each, at least one")
        if not np.isfinite(self.loss).all() or (self.cost < 0).any():
            raise RecipeError("a predicted loss is not finite or a cost is negative")


def allocate(options: Sequence[Options], budget: int, least: int = 0) -> list[int]:
    """The index of the option of every matrix with the least total loss within `budget` parameters.

    Exact while budget / gcd(costs) <= MAX_UNITS; beyond that costs are rounded up to a coarser unit, so the budget
    still holds and at most len(options) / MAX_UNITS of it stays unused. Time O(units * total options), memory O(units).

    Args:
        least: parameters to be used at least, if any choice does.
    Raises:
        RecipeError: even the cheapest options do not fit.
    """
    smallest = sum(int(o.cost.min()) for o in options)
    if smallest > budget:
        raise RecipeError(
            f"the budget is {budget} parameters but the smallest allowed ranks need {smallest}; "
            "lower the ratio, the block or the number of dense projections"
        )
    unit = max(math.gcd(*(int(c) for o in options for c in o.cost)), math.ceil(budget / MAX_UNITS), 1)
    priced = [(-(-o.cost // unit), o.loss) for o in options]
    losses = _losses(priced, budget // unit)
    low = -(-least // unit)
    used = low + int(losses[low:].argmin()) if np.isfinite(losses[low:]).any() else int(losses.argmin())
    return _divide(priced, used)


def _divide(priced: Sequence[Priced], units: int) -> list[int]:
    """The best option of every matrix that together cost `units`, which some choice does."""
    if len(priced) == 1:
        costs, losses = priced[0]
        return [int(np.where(costs == units, losses, np.inf).argmin())]
    middle = len(priced) // 2
    first, second = priced[:middle], priced[middle:]
    share = int((_losses(first, units) + _losses(second, units)[::-1]).argmin())
    return _divide(first, share) + _divide(second, units - share)


def _losses(priced: Sequence[Priced], units: int) -> Floats:
    """The least total loss at a cost of 0, 1, ... `units`; infinite where no choice costs that."""
    best = np.full(units + 1, np.inf)
    best[0] = 0.0
    for costs, losses in priced:
        new = np.full(units + 1, np.inf)
        for cost, loss in zip(costs, losses, strict=True):
            if cost <= units:
                np.minimum(new[cost:], best[: units + 1 - cost] + loss, out=new[cost:])
        best = new
    return best


def total(options: Sequence[Options], chosen: Sequence[int]) -> tuple[int, float]:
    """Parameters and predicted loss of a choice."""
    cost = sum(int(o.cost[c]) for o, c in zip(options, chosen, strict=True))
    return cost, float(sum(o.loss[c] for o, c in zip(options, chosen, strict=True)))
