"""Allocation over whole layers with a limit on the number of different rank patterns.

A pattern is what the projections of one layer become. Every further pattern is another compiled kernel and ends layer
reuse in the compiler. Layers are put into groups, the members of a group share their choice, and the exact programme of
`allocate` runs over the groups. Which layers go together is found at the price of a parameter (the Lagrange multiplier
of the budget), where layers and projections separate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nxdi_svd_plugin.factorize.allocate import Options, allocate, total

SWEEPS = 3  # times through all layers when single ones are moved


def allocate_layers(layers: Sequence[Sequence[Options]], budget: int, max_patterns: int = 0) -> list[list[int]]:
    """The chosen option of every projection of every layer, with at most `max_patterns` different rows (0: no limit).

    All layers must offer the same options in the same order. "Full" is a budget of which 99.9 % are spent; a single
    pattern is too coarse for it, as a block more in one projection is one more in every layer.

    1. Without a limit, or where it has no more patterns than allowed: `allocate` over all projections, which is exact.
    2. Otherwise cut two orders of the layers (by position, and by what step 1 spends on them) into 1 to `max_patterns`
       runs, each run with one choice, by dynamic programming; do so at three prices of a parameter.
    3. Let layers move to the run whose choice suits them best (k-means), and solve each grouping exactly.
    4. Improve two groupings by moving single layers: the best of the full ones, and the best of all.
    5. With 2 patterns also try every cut of both orders; with more, what one pattern less gives.
    6. Of all these take the full solution with the least loss, or the one with the least loss where none is full.

    Steps 2 to 6 are a heuristic.
    Raises:
        RecipeError: even the cheapest options do not fit into `budget` parameters.
    """
    flat = [o for layer in layers for o in layer]
    width = len(layers[0])
    free = allocate(flat, budget, _filled(budget))
    rows = [free[i : i + width] for i in range(0, len(free), width)]
    if not max_patterns or len({tuple(row) for row in rows}) <= max_patterns:
        return rows
    spent = [
        sum(int(o.cost[c]) for o, c in zip(layer, row, strict=True)) for layer, row in zip(layers, rows, strict=True)
    ]
    orders = [list(range(len(layers))), sorted(range(len(layers)), key=spent.__getitem__)]
    found = []
    for price in price_of_a_parameter(flat, budget) * np.array([0.5, 1.0, 2.0]):
        for order in orders:
            for segments in _segments(layers, order, price, max_patterns):
                groups = _refine(layers, segments, price)
                found.append((_rating(layers, _solve_groups(layers, groups, budget), budget), groups))
    starts = min(found), min(found, key=lambda candidate: candidate[0][1])
    results = [_solve_groups(layers, _moved(layers, groups, budget), budget) for _, groups in starts]
    if max_patterns == 2:
        halves = [(order[:cut], order[cut:]) for order in orders for cut in range(1, len(order))]
        results += [_solve_groups(layers, groups, budget, _filled(budget)) for groups in halves]
    if max_patterns > 2:
        results.append(allocate_layers(layers, budget, max_patterns - 1))
    return min(results, key=lambda rows: _rating(layers, rows, budget))


def price_of_a_parameter(options: Sequence[Options], budget: int) -> float:
    """The Lagrange multiplier at which independent choices min(loss + price * cost) just fit the budget (bisection)."""
    low, high = 0.0, max(float(o.loss.max()) for o in options) + 1.0
    for _ in range(100):
        price = (low + high) / 2
        cost = sum(int(o.cost[(o.loss + price * o.cost).argmin()]) for o in options)
        low, high = (price, high) if cost > budget else (low, price)
    return high


def _merged(layers: Sequence[Sequence[Options]], group: Sequence[int]) -> list[Options]:
    """The options of a group of layers that share their choice: costs and losses add up."""
    return [
        Options(np.sum([layers[i][p].cost for i in group], axis=0), np.sum([layers[i][p].loss for i in group], axis=0))
        for p in range(len(layers[0]))
    ]


def _segments(
    layers: Sequence[Sequence[Options]], order: Sequence[int], price: float, most: int
) -> list[list[list[int]]]:
    """`order` cut into 1, 2, ... `most` runs with the least sum of loss + price * cost when a run shares its choice."""
    n = len(order)
    value = np.full((n, n + 1), np.inf)
    for a in range(n):
        for b in range(a + 1, n + 1):
            value[a, b] = sum((o.loss + price * o.cost).min() for o in _merged(layers, order[a:b]))
    best, cuts = value[0].copy(), []
    for _ in range(most - 1):
        table = best[:n, None] + value
        cuts.append(table.argmin(0))
        best = table.min(0)
    found = []
    for count in range(most):
        stops = [n]
        for cut in reversed(cuts[:count]):
            stops.append(int(cut[stops[-1]]))
        edges = [0, *reversed(stops)]
        found.append([list(order[a:b]) for a, b in zip(edges, edges[1:], strict=False) if a < b])
    return found


def _moved(layers: Sequence[Sequence[Options]], groups: list[list[int]], budget: int) -> list[list[int]]:
    """Move single layers to other groups while that lowers the rating, at most SWEEPS times through all layers."""
    best = _rating(layers, _solve_groups(layers, groups, budget), budget)
    for _ in range(SWEEPS):
        before = best
        for i in range(len(layers)):
            for target in range(len(groups)):
                other = [[j for j in group if j != i] + [i] * (k == target) for k, group in enumerate(groups)]
                other = [group for group in other if group]
                rating = _rating(layers, _solve_groups(layers, other, budget), budget)
                if rating < best and len(other) == len(groups):
                    best, groups = rating, other
        if best == before:
            break
    return groups


def _refine(layers: Sequence[Sequence[Options]], groups: list[list[int]], price: float) -> list[list[int]]:
    """Move every layer to the group whose choice suits it best, and choose again, until nothing moves (k-means)."""
    for _ in range(20):
        patterns = [[int((o.loss + price * o.cost).argmin()) for o in _merged(layers, group)] for group in groups]
        moved: list[list[int]] = [[] for _ in groups]
        for i, layer in enumerate(layers):
            price_of = [
                sum(float(o.loss[c] + price * o.cost[c]) for o, c in zip(layer, pattern, strict=True))
                for pattern in patterns
            ]
            moved[int(np.argmin(price_of))].append(i)
        moved = [group for group in moved if group]
        if moved == groups:
            break
        groups = moved
    return groups


def _solve_groups(
    layers: Sequence[Sequence[Options]], groups: Sequence[Sequence[int]], budget: int, least: int = 0
) -> list[list[int]]:
    width = len(layers[0])
    chosen = allocate([o for group in groups for o in _merged(layers, group)], budget, least)
    rows: list[list[int]] = [[] for _ in layers]
    for number, group in enumerate(groups):
        for i in group:
            rows[i] = chosen[number * width : (number + 1) * width]
    return rows


def _rating(layers: Sequence[Sequence[Options]], rows: list[list[int]], budget: int) -> tuple[bool, float]:
    cost, loss = total([o for layer in layers for o in layer], [c for row in rows for c in row])
    return cost < _filled(budget), loss


def _filled(budget: int) -> int:
    """The least cost that fills the budget to 0.1 %."""
    return math.ceil(0.999 * budget)
