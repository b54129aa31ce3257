"""Choices that no other choice beats in both cost and loss: what a price could ever prefer, and a little more.

What a whole layer may become is one choice for each of its projections at each of its widths: too many to look at, but
only those can be part of the best model for which nothing cheaper has as small a loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin.factorize.allocate import Options

Indices = NDArray[np.int64]


def undominated(options: Options) -> Indices:
    """The options of which none costs as much or less with as small a loss, by rising cost and falling loss."""
    order = np.lexsort((options.loss, options.cost))
    loss = options.loss[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]])
    return order[loss < before]


def together(parts: Sequence[Options]) -> tuple[Options, Indices]:
    """The undominated sums of one option of every part, and which ones each is of [n, len(parts)].

    Exact: a sum of which one summand is dominated is dominated.
    """
    found, picks = Options(np.zeros(1, dtype=np.int64), np.zeros(1)), np.zeros((1, 0), dtype=np.int64)
    for part in parts:
        cost = np.add.outer(found.cost, part.cost).ravel()
        sums = Options(cost, np.add.outer(found.loss, part.loss).ravel())
        best = undominated(sums)
        old, new = np.divmod(best, len(part.cost))
        found, picks = take(sums, best), np.column_stack([picks[old], new])
    return found, picks


def thinned(options: Options, most: int) -> Indices:
    """At most `most` of undominated options: the one of least loss in each of so many equal ranges of the cost."""
    if len(options.cost) <= most:
        return np.arange(len(options.cost))
    edges = np.linspace(options.cost[0], options.cost[-1], most)
    return np.unique(np.searchsorted(options.cost, edges, side="right") - 1)


def take(options: Options, which: Indices) -> Options:
    """Some of the options, in this order."""
    return Options(options.cost[which], options.loss[which])
