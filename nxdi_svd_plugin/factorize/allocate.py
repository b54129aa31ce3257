"""Spend a parameter budget on the ranks that lower the predicted loss most.

    minimise sum_i loss_i(o_i)   subject to   sum_i cost_i(o_i) <= budget,   one option o_i for every matrix,

where an option is a rank (a multiple of the block) or "dense" (loss 0, cost m n). Losses are in nats per token from the
two-sided objective, so they compare across matrices. Solved exactly by dynamic programming over parameter units.
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


def allocate(options: Sequence[Options], budget: int) -> list[int]:
    """The index of the option of every matrix with the least total loss within `budget` parameters.

    Exact while budget / gcd(costs) <= MAX_UNITS; beyond that costs are rounded up to a coarser unit, so the budget
    still holds and at most len(options) / MAX_UNITS of it stays unused. Time O(units * total options).
    Raises:
        RecipeError: even the cheapest options do not fit.
    """
    least = sum(int(o.cost.min()) for o in options)
    if least > budget:
        raise RecipeError(
            f"the budget is {budget} parameters but the smallest allowed ranks need {least}; "
            "lower the ratio, the block or the number of dense projections"
        )
    unit = max(math.gcd(*(int(c) for o in options for c in o.cost)), math.ceil(budget / MAX_UNITS), 1)
    units = budget // unit
    best, picks = np.zeros(units + 1), np.zeros((len(options), units + 1), dtype=np.int16)
    for row, option in zip(picks, options, strict=True):
        new = np.full(units + 1, np.inf)
        for index, (cost, loss) in enumerate(zip(-(-option.cost // unit), option.loss, strict=True)):
            if cost > units:
                continue
            candidate = best[: units + 1 - cost] + loss
            better = candidate < new[cost:]
            new[cost:][better] = candidate[better]
            row[cost:][better] = index
        best = new
    return _trace(picks, options, unit, int(best.argmin()))


def _trace(picks: NDArray[np.int16], options: Sequence[Options], unit: int, at: int) -> list[int]:
    chosen: list[int] = []
    for row, option in zip(picks[::-1], options[::-1], strict=True):
        chosen.append(int(row[at]))
        at -= -(-int(option.cost[chosen[-1]]) // unit)
    return chosen[::-1]


def total(options: Sequence[Options], chosen: Sequence[int]) -> tuple[int, float]:
    """Parameters and predicted loss of a choice."""
    cost = sum(int(o.cost[c]) for o, c in zip(options, chosen, strict=True))
    return cost, float(sum(o.loss[c] for o, c in zip(options, chosen, strict=True)))
