"""Eq. 5 against a search over all multiples of the block, and the refusals around it."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.rank import block_rank as rank_of_cost
from nxdi_svd_plugin.factorize.rank import ratio


def pair(m, n, rank):
    return rank * (m + n)


def interpolative(m, n, rank):
    return rank * (m + n - rank)


def block_rank(saving, m, n, block, tau=0.5, cost=pair):
    return rank_of_cost(saving, m, n, block, tau, cost)


def searched(saving, m, n, block, tau):
    """The multiple of the block just below the exact rank, or the next one if at least tau of the step is needed."""
    exact = (1 - Fraction(saving)) * m * n / (m + n)
    rank = 0
    while rank + block <= exact:
        rank += block
    return rank + block if (exact - rank) / block >= Fraction(tau) else rank


def near_a_tie(saving, m, n, block, tau):
    step = (1 - Fraction(saving)) * m * n / ((m + n) * block) - Fraction(tau)
    return abs(step - round(step)) < Fraction(1, 10**9)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0.01, 0.9),
    st.integers(2, 600),
    st.integers(2, 600),
    st.sampled_from([1, 3, 8, 16, 64, 128]),
    st.floats(0.01, 1),
)
def test_eq5_against_a_search_over_all_multiples(saving, m, n, block, tau):
    assume(block <= min(m, n) and not near_a_tie(saving, m, n, block, tau))
    expected = searched(saving, m, n, block, tau)
    if 0 < expected < m * n / (m + n):
        assert block_rank(saving, m, n, block, tau) == expected
    else:
        with pytest.raises(RecipeError, match="rounds to rank"):
            block_rank(saving, m, n, block, tau)


@pytest.mark.parametrize(
    ("saving", "m", "n", "block", "tau", "rank"),
    [
        # Llama-3.2-1B, paper-notes: H 2048, I 8192, exact rank 1556.48 = 12.16 blocks
        (0.05, 2048, 8192, 128, 0.5, 1536),
        (0.05, 2048, 8192, 128, 1.0, 1536),
        (0.10, 2048, 8192, 128, 0.51, 1536),  # 11.52 blocks
        (0.10, 2048, 8192, 128, 0.53, 1408),
        (0.20, 4096, 14336, 128, 0.5, 2560),
        (0.10, 576, 1536, 1, 1.0, 377),
    ],
)
def test_known_ranks(saving, m, n, block, tau, rank):
    assert block_rank(saving, m, n, block, tau) == rank


def test_the_sides_may_be_swapped():
    assert block_rank(0.3, 44, 90, 4) == block_rank(0.3, 90, 44, 4)


def test_refusals_name_the_block_the_rank_and_the_way_out():
    with pytest.raises(RecipeError, match=r"block 128 is larger than the smaller side of a 90 x 44 matrix.*at most 44"):
        block_rank(0.1, 90, 44, 128)
    with pytest.raises(RecipeError, match="rounds to rank 0.*smaller block or ratio"):
        block_rank(0.9, 44, 90, 44)
    with pytest.raises(RecipeError, match="rounds to rank 32, which saves nothing of a 44 x 90 matrix"):
        block_rank(0.01, 44, 90, 16)


def test_ratio_is_eq4():
    assert ratio(1000, 900) == pytest.approx(0.1)
    assert ratio(7, 7) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 60), st.integers(8, 200), st.floats(0.01, 0.9), st.sampled_from([1, 2, 4]))
def test_another_cost_against_brute_force(m, n, saving, block):
    """tau near 1 rounds down, the most blocks within the budget; 0.5 is at most one block away."""
    budget, ranks = (1 - saving) * m * n, range(block, min(m, n), block)
    below = [r for r in ranks if interpolative(m, n, r) <= budget * (1 + 1e-12)]
    if below:
        down = block_rank(saving, m, n, block, 1 - 1e-9, interpolative)
        assert down == max(below)
    if below and max(below) + block < min(m, n):
        assert block_rank(saving, m, n, block, 0.5, interpolative) - down in (0, block)


def test_another_cost_that_saves_nothing_is_refused():
    with pytest.raises(RecipeError, match="rounds to rank 576"):
        block_rank(0.01, 576, 1536, 64, 0.1, interpolative)
    with pytest.raises(RecipeError, match="rounds to rank 0"):
        block_rank(0.99, 576, 1536, 128, 0.5, interpolative)
    with pytest.raises(RecipeError, match="block 577 is larger than the smaller side of a 576 x 1536 matrix"):
        block_rank(0.1, 576, 1536, 577, 0.5, interpolative)
