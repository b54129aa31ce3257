"""Undominated choices against all choices."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.factorize.allocate import Options
from nxdi_svd_plugin.factorize.undominated import thinned, together, undominated

PART = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


def options(pairs):
    return Options(np.array([c for c, _ in pairs], dtype=np.int64), np.array([float(v) for _, v in pairs]))


@settings(max_examples=100, deadline=None)
@given(st.lists(PART, min_size=1, max_size=3))
def test_sums_are_those_that_no_other_sum_beats(parts):
    found, picks = together([options(part) for part in parts])
    every = [(sum(c for c, _ in row), sum(v for _, v in row)) for row in itertools.product(*parts)]
    front = sorted({x for x in every if not any(y != x and y[0] <= x[0] and y[1] <= x[1] for y in every)})
    assert list(zip(found.cost.tolist(), found.loss.tolist(), strict=True)) == front
    for row, cost, loss in zip(picks.tolist(), found.cost, found.loss, strict=True):
        chosen = [part[i] for i, part in zip(row, parts, strict=True)]
        assert (sum(c for c, _ in chosen), sum(v for _, v in chosen)) == (cost, loss)


def test_thinned_keeps_the_ends_and_at_most_so_many():
    front = options([(cost, 1000 - cost**0.5) for cost in range(0, 900, 3)])
    kept = thinned(front, 20)
    assert len(kept) <= 20 and kept[0] == 0 and kept[-1] == 299
    assert thinned(front, 300).tolist() == list(range(300)) == undominated(front).tolist()
