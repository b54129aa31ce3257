"""Allocation against brute force, budget and block properties, and the limit on rank patterns."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize import allocate as module
from nxdi_svd_plugin.factorize.allocate import Options, allocate, total
from nxdi_svd_plugin.factorize.rank_patterns import allocate_layers, price_of_a_parameter


def brute_force(options, budget):
    best = np.inf
    for chosen in itertools.product(*(range(len(o.cost)) for o in options)):
        cost, loss = total(options, chosen)
        best = min(best, loss if cost <= budget else np.inf)
    return best


def random_options(draw, count, most=5):
    made = []
    for _ in range(count):
        size = draw(st.integers(1, most))
        cost = draw(st.lists(st.integers(1, 30), min_size=size, max_size=size))
        loss = draw(st.lists(st.floats(0, 10), min_size=size, max_size=size))
        made.append(Options(np.array(cost), np.array(loss)))
    return made


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_allocation_equals_brute_force(data):
    options = random_options(data.draw, data.draw(st.integers(1, 5)))
    smallest = int(sum(o.cost.min() for o in options))
    budget = data.draw(st.integers(smallest, smallest + 120))
    chosen = allocate(options, int(budget))
    cost, loss = total(options, chosen)
    assert cost <= budget and loss == pytest.approx(brute_force(options, budget), abs=1e-9)


def smol_layers(block, layers=30, seed=0):
    """SmolLM2-shaped options (576 x 1536): interpolative ranks in blocks, and dense, with decaying spectra."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(block, 576, block)
    cost = np.array([int(r) * (576 + 1536 - int(r)) for r in ranks] + [576 * 1536])
    made = []
    for i in range(layers):
        row = []
        for _ in range(3):
            energy = np.sort(rng.exponential(size=576) * np.exp(-np.arange(576) / 150))[::-1] * (1 + i / 5)
            row.append(Options(cost, np.array([energy[r:].sum() for r in ranks] + [0.0])))
        made.append(row)
    return made


@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2])
def test_budget_is_met_to_a_thousandth(block, ratio):
    layers = smol_layers(block)
    budget = int((1 - ratio) * 90 * 576 * 1536)
    rows = allocate_layers(layers, budget)
    cost, _ = total([o for layer in layers for o in layer], [c for row in rows for c in row])
    assert 0.999 * budget <= cost <= budget


def test_a_coarse_unit_never_breaks_the_budget(monkeypatch):
    layers = smol_layers(16, layers=4)
    flat = [o for layer in layers for o in layer]
    budget = int(0.9 * 12 * 576 * 1536)
    _, exact = total(flat, allocate(flat, budget))
    monkeypatch.setattr(module, "MAX_UNITS", 3000)
    cost, loss = total(flat, allocate(flat, budget))
    assert (1 - len(flat) / 3000) * budget <= cost <= budget and exact <= loss <= 1.05 * exact


def peak_of_allocate(options, budget):
    tracemalloc.start()
    allocate(options, budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_layers():
    """Six arrays of one float64 per unit of the budget are alive at most, for 2 layers as for 64."""
    layers = [o for layer in smol_layers(16, layers=64) for o in layer]
    for count in (6, 192):
        budget = int(0.9 * count * 576 * 1536)
        units = budget // max(np.gcd.reduce(layers[0].cost), -(-budget // module.MAX_UNITS))
        assert 8 * units < peak_of_allocate(layers[:count], budget) < 6 * 8 * units + 1e5


@pytest.mark.parametrize("limit", [1, 2, 4, 8])
def test_the_number_of_patterns_is_limited(limit):
    layers = smol_layers(64, layers=12)
    flat = [o for layer in layers for o in layer]
    budget = int(0.85 * 36 * 576 * 1536)
    rows = allocate_layers(layers, budget, limit)
    cost, loss = total(flat, [c for row in rows for c in row])
    _, free = total(flat, allocate(flat, budget))
    assert len({tuple(row) for row in rows}) <= limit and cost <= budget and loss >= free - 1e-9
    if limit > 1:
        _, one = total(flat, [c for row in allocate_layers(layers, budget, 1) for c in row])
        assert loss <= one


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.1, 0.2, 0.33, 0.5])
def test_a_limit_still_meets_the_budget_and_a_larger_one_is_no_worse(block, ratio):
    """Two patterns for 30 layers are fine enough for a thousandth: the search has to find such a grouping."""
    layers = smol_layers(block)
    flat = [o for layer in layers for o in layer]
    budget = int((1 - ratio) * 90 * 576 * 1536)
    found = []
    for limit in (2, 3, 4):
        rows = allocate_layers(layers, budget, limit)
        cost, loss = total(flat, [c for row in rows for c in row])
        assert len({tuple(row) for row in rows}) <= limit and 0.999 * budget <= cost <= budget
        found.append(loss)
    assert found == sorted(found, reverse=True)


def test_one_pattern_is_too_coarse_for_a_thousandth():
    """The sums of three costs, times the layers: the nearest below the budget leaves 2.5 % of it at block 128."""
    layers = smol_layers(128)
    flat = [o for layer in layers for o in layer]
    budget = int(0.95 * 90 * 576 * 1536)
    sums = {30 * int(sum(costs)) for costs in itertools.product(layers[0][0].cost, repeat=3)}
    cost, _ = total(flat, [c for row in allocate_layers(layers, budget, 1) for c in row])
    assert cost <= max(s for s in sums if s <= budget) < 0.976 * budget


def test_a_share_of_the_budget_can_be_asked_for():
    """Of the choices that use at least `least`, the best; the best of all where none does."""
    options = [Options(np.array([1, 5, 6]), np.array([3.0, 1.0, 2.0])) for _ in range(2)]
    assert [total(options, allocate(options, 12, least)) for least in (0, 11, 12)] == [(10, 2.0), (11, 3.0), (12, 4.0)]
    assert total(options, allocate(options, 9, 8)) == (6, 4.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_patterns_near_brute_force(seed, limit):
    """All ways to give four layers at most `limit` of six patterns; the heuristic stays within a third of the best."""
    rng = np.random.default_rng(seed)
    cost = np.array([[1, 2, 4], [1, 3, 9]])
    layers = [
        [Options(c, np.sort(rng.exponential(size=3))[::-1] * [1, 1, 0] * scale) for c in cost]
        for scale in rng.uniform(0.2, 5, 4)
    ]
    budget, best = 26, np.inf
    patterns = list(itertools.product(range(3), range(3)))
    for allowed in itertools.combinations(patterns, limit):
        for rows in itertools.product(allowed, repeat=4):
            spent, loss = total([o for layer in layers for o in layer], [c for row in rows for c in row])
            best = min(best, loss if spent <= budget else np.inf)
    rows = allocate_layers(layers, budget, limit)
    spent, loss = total([o for layer in layers for o in layer], [c for row in rows for c in row])
    worst = sum(float(o.loss.max()) for layer in layers for o in layer)
    assert spent <= budget and best - 1e-9 <= loss <= best + worst / 3


def test_price_separates_the_choices():
    flat = [o for layer in smol_layers(16, layers=4) for o in layer]
    budget = int(0.9 * 12 * 576 * 1536)
    price = price_of_a_parameter(flat, budget)
    cost = sum(int(o.cost[(o.loss + price * o.cost).argmin()]) for o in flat)
    assert cost <= budget


def test_errors_name_the_numbers():
    one = Options(np.array([5, 9]), np.array([1.0, 0.0]))
    with pytest.raises(RecipeError, match="smallest allowed ranks need 10"):
        allocate([one, one], 9)
    with pytest.raises(RecipeError, match="not finite"):
        Options(np.array([5]), np.array([np.nan]))
    with pytest.raises(RecipeError, match="expected one of each"):
        Options(np.array([5]), np.array([1.0, 2.0]))
