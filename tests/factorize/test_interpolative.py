"""Interpolative form: exact, pivots in whole blocks per class, bounded growth, Eq. 5 with its cost, one order of I."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize import interpolative
from nxdi_svd_plugin.factorize.growth import limit_growth
from nxdi_svd_plugin.factorize.interpolative import GROWTH_BOUND, GROWTH_LIMIT, interpolate
from nxdi_svd_plugin.factorize.quotas import block_quotas, moved_quotas
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.order import cells, common_order, indices, split_evenly
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import complement, length


def interpolate_one(v, classes, block):
    return interpolate([v], [classes], block)[0]


def low_rank(rank, width, seed=0, decay=1.0):
    gen = torch.Generator().manual_seed(seed)
    scale = decay ** torch.arange(rank, dtype=torch.float64)
    return scale[:, None] * torch.randn(rank, width, generator=gen, dtype=torch.float64)


def rebuild(v, found):
    """[I | C] in the columns' own places."""
    rest = torch.ones(v.shape[1], dtype=torch.bool)
    rest[found.pivots] = False
    full = torch.empty_like(v)
    full[:, found.pivots] = torch.eye(len(v), dtype=v.dtype)
    full[:, rest] = found.coefficients
    return full


@pytest.mark.parametrize(("rank", "width", "block"), [(64, 160, 16), (7, 23, 1), (96, 96, 32), (129, 300, 3)])
@pytest.mark.parametrize("decay", [1.0, 0.93])
def test_the_form_is_the_same_matrix(rank, width, block, decay):
    v = low_rank(rank, width, decay=decay)
    found = interpolate_one(v, [torch.arange(width)], block)
    assert len(found.pivots) == rank and len(set(found.pivots.tolist())) == rank
    assert found.growth == pytest.approx(float(found.coefficients.abs().max()) if rank < width else 0.0)
    assert found.growth <= GROWTH_BOUND
    # the solve loses at most cond(v_J) digits; rows span 0.93^128 = 1e-4, so 1e-9 of each row's size is generous
    kept = v[:, found.pivots]
    error = (kept @ rebuild(v, found) - v).norm(dim=1) / v.norm(dim=1)
    assert float(error.max()) < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_class_gives_whole_blocks(data):
    block = data.draw(st.sampled_from([1, 2, 4]))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    width = sum(sizes)
    room = sum(s // block for s in sizes)
    if not room:
        return
    rank = block * data.draw(st.integers(1, room))
    shuffled = torch.randperm(width, generator=torch.Generator().manual_seed(rank))
    classes = list(shuffled.split(sizes))
    found = interpolate_one(low_rank(rank, width, seed=width), classes, block)
    inside = [len(set(found.pivots.tolist()) & set(c.tolist())) for c in classes]
    assert sum(inside) == rank and all(n % block == 0 for n in inside)


def test_quotas_stay_near_what_was_wanted():
    assert block_quotas([92, 36], [512, 256], 128, 64) == [64, 64]
    assert block_quotas([120, 8], [512, 256], 128, 64) == [128, 0]
    assert block_quotas([128, 0], [100, 60], 128, 32) == [96, 32]
    with pytest.raises(SvdError, match="does not fit"):
        block_quotas([64, 64], [100, 100], 128, 128)
    with pytest.raises(SvdError, match="does not fit"):
        block_quotas([64, 64], [100, 100], 130, 128)


def test_moved_quotas_are_all_single_moves_the_nearest_first():
    quota, wanted, sizes, block = [64, 0, 128], [60, 20, 112], [64, 130, 256], 64
    found = list(moved_quotas(quota, wanted, sizes, block))
    assert sorted(found) == [[0, 0, 192], [0, 64, 128], [64, 64, 64]]  # class 0 has no room for more
    far = [sum(abs(q - w) for q, w in zip(one, wanted, strict=True)) for one in found]
    assert far == sorted(far)


def test_columns_of_a_smaller_rank_are_reproduced():
    """Rank 4 of 8: four pivots carry nothing, and zero columns are pivots only where nothing else is left."""
    v = low_rank(4, 30)
    v[:, 20:] = 0
    stacked = torch.cat([v, 0.5 * v])
    first, second = interpolate([stacked, stacked.flip(1)], [[torch.arange(15), torch.arange(15, 30)]] * 2, 2)
    for wide, found in ((stacked, first), (stacked.flip(1), second)):
        assert len(set(found.pivots.tolist())) == 8 and found.limited == 0 and found.growth <= GROWTH_LIMIT
        assert int((found.pivots < 15).sum()) == int((first.pivots < 15).sum())
        torch.testing.assert_close(wide[:, found.pivots] @ rebuild(wide, found), wide, rtol=0, atol=1e-12)


def test_what_a_class_of_equal_columns_cannot_give_is_reported():
    """Six of eight pivots must come from columns that are all alike: what is left is numpy's least squares."""
    v = low_rank(8, 20)
    v[:, 2:] = v[:, 2:3] + 1e-13 * low_rank(8, 18, seed=1)
    found = interpolate_one(v, [torch.arange(2), torch.arange(2, 20)], 2)
    assert int((found.pivots < 2).sum()) == 2
    torch.testing.assert_close(v[:, found.pivots] @ rebuild(v, found), v, rtol=0, atol=1e-9)
    wide = torch.cat([low_rank(4, 8, seed=2), torch.zeros(4, 4, dtype=v.dtype)], 1)
    wide[:, :4] = wide[:, :1]
    found = interpolate_one(wide, [torch.arange(4), torch.arange(4, 7), torch.arange(7, 12)], 2)
    kept = wide[:, found.pivots].numpy()
    best = kept @ np.linalg.lstsq(kept, wide.numpy(), rcond=1e-10)[0]
    assert found.limited == pytest.approx(np.linalg.norm(best - wide.numpy()) / np.linalg.norm(wide.numpy()))
    assert found.limited > 0.1


@pytest.mark.parametrize("exchanged", [1e-9, -1.0], ids=["exchanged", "solved again"])
def test_swaps_reach_the_bound_where_greedy_pivoting_does_not(monkeypatch, exchanged):
    """Kahan's matrix: QR with column pivoting leaves it alone although its coefficients are large."""
    n, c = 40, 0.285
    s = (1 - c * c) ** 0.5
    kahan = torch.diag(s ** torch.arange(n, dtype=torch.float64)) @ (
        torch.eye(n, dtype=torch.float64) - c * torch.triu(torch.ones(n, n, dtype=torch.float64), 1)
    )
    wide = kahan[: n - 1]
    assert float(torch.linalg.solve(wide[:, : n - 1], wide[:, n - 1]).abs().max()) > 100
    monkeypatch.setattr(interpolative, "EXCHANGED", exchanged)
    found = interpolate_one(wide, [torch.arange(n)], 1)
    assert found.growth <= GROWTH_BOUND
    torch.testing.assert_close(wide[:, found.pivots] @ rebuild(wide, found), wide, rtol=0, atol=1e-13)


def forced(thin):
    """Two classes that ask for 5 and 3 pivots and must give 4 each: one lies in the other's space up to `thin`."""
    gen = torch.Generator().manual_seed(7)
    first, second = (torch.randn(8, 24, generator=gen, dtype=torch.float64) for _ in range(2))
    first[5:] = 0.0
    second[:5] *= thin
    return torch.cat([first, second], 1), [torch.arange(24), torch.arange(24, 48)]


@pytest.mark.parametrize("thin", [1e-2, 1e-4, 1e-6])
def test_growth_never_exceeds_the_limit(thin):
    v, classes = forced(thin)
    found = interpolate_one(v, classes, 4)
    kept = v[:, found.pivots]
    rest = torch.ones(48, dtype=torch.bool)
    rest[found.pivots] = False
    assert float(torch.linalg.solve(kept, v[:, rest]).abs().max()) > 2 * GROWTH_LIMIT
    assert found.growth == GROWTH_LIMIT == float(found.coefficients.abs().max())
    error = (kept @ rebuild(v, found) - v).norm() / v.norm()
    assert found.limited == pytest.approx(float(error), rel=1e-6) and 0.01 < found.limited < 0.5


def test_another_quota_is_tried_where_the_first_must_be_limited(monkeypatch):
    """A third class of shorter columns that span everything: nobody asks for them, and with four of them C is exact."""
    v, classes = forced(1.0)
    third = 0.3 * torch.randn(8, 24, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    v, classes = torch.cat([v, third], 1), [*classes, torch.arange(48, 72)]
    v[5:, :24], v[:5, 24:48] = 0.0, 0.0
    found = interpolate_one(v, classes, 4)
    assert found.limited == 0.0 and int((found.pivots >= 48).sum()) == 4
    torch.testing.assert_close(v[:, found.pivots] @ rebuild(v, found), v, rtol=0, atol=1e-12)
    monkeypatch.setattr(interpolative, "QUOTAS", 0)
    assert interpolate_one(v, classes, 4).limited > 0.01


def test_exact_factors_are_not_limited():
    found = interpolate_one(low_rank(64, 160), [torch.arange(160)], 16)
    assert found.limited == 0.0
    c = found.coefficients
    assert limit_growth(low_rank(64, 160)[:, found.pivots], c, GROWTH_LIMIT) is c


def test_limited_coefficients_are_the_constrained_least_squares():
    """The conditions of Karush, Kuhn and Tucker: no gradient where free, and at the limit it points outwards."""
    gen = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(20, 20, generator=gen, dtype=torch.float64))
    kept = left * torch.logspace(0, -1.5, 20, dtype=torch.float64) @ right
    c = torch.linalg.solve(kept, torch.randn(20, 8, generator=gen, dtype=torch.float64))
    limited = limit_growth(kept, c, 16.0)
    gradient, free = kept.T @ (kept @ (limited - c)), limited.abs() < 16.0
    assert float(c.abs().max()) > 30 and float(limited.abs().max()) == 16.0
    assert float(gradient[free].abs().max()) < 1e-9
    assert bool((gradient[~free] * limited[~free] < 0).all())


def test_coefficients_in_another_order():
    v = low_rank(6, 15)
    found = interpolate_one(v, [torch.arange(15)], 1)
    rest = torch.tensor([i for i in range(15) if i not in found.pivots])
    kept, columns = found.pivots.flip(0), rest.roll(2)
    torch.testing.assert_close(v[:, kept] @ found.in_order(columns, kept), v[:, columns])


def three_sets(width, block, ranks, seed):
    gen = torch.Generator().manual_seed(seed)
    sets = []
    for i, rank in enumerate(ranks):
        empty = torch.empty(0, dtype=torch.long)
        classes = cells([*sets, *[empty] * (3 - i)], width)
        v = torch.randn(rank, width, generator=gen, dtype=torch.float64)
        sets.append(interpolate_one(v, classes, block).pivots)
    return sets


@pytest.mark.parametrize(
    ("width", "block", "ranks"), [(512, 16, (192, 176, 192)), (512, 32, (96, 128, 64)), (90, 2, (40, 38, 6))]
)
def test_one_order_serves_gate_up_and_down(width, block, ranks):
    sets = three_sets(width, block, ranks, seed=width)
    order, ranges = common_order(sets, width)
    assert torch.equal(order.sort().values, torch.arange(width))
    for pivots, runs, most in zip(sets, ranges, (1, 1, 2), strict=True):
        assert set(order[indices(runs)].tolist()) == set(pivots.tolist())
        assert len(runs) <= most and all(a % block == 0 and b % block == 0 for a, b in runs)
        gaps = complement(runs, width)
        assert torch.equal(torch.cat([indices(runs), indices(gaps)]).sort().values, torch.arange(width))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_ranks_share_the_pivots_evenly(parts):
    sets = three_sets(512, 16, (192, 176, 160), seed=1)
    _, ranges = common_order(sets, 512)
    runs = dict(zip(("gate_proj", "up_proj", "down_proj"), ranges, strict=True))
    mlp = Mlp(512, *(LowRank(length(runs[name]), runs[name]) if name in runs else DENSE for name in PROJECTIONS))
    shares, local = split_evenly(mlp, parts), core_runs(mlp, parts)
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(512))
    for name in runs:
        pivots = set(indices(runs[name]).tolist())
        for share in shares:
            mine = set(share[indices(local[name])].tolist())
            assert mine == pivots & set(share.tolist()) and len(mine) == len(pivots) // parts


def test_uneven_pivots_are_refused_by_name():
    with pytest.raises(SvdError, match="do not divide over 4"):
        split_evenly(Mlp(12, LowRank(6, ((0, 6),)), DENSE, DENSE), 4)
    mlp = Mlp(12, LowRank(6, ((0, 6),)), DENSE, DENSE)
    assert core_runs(mlp, 2)["down_proj"] == () and split_evenly(mlp, 2)[0].tolist() == [0, 1, 2, 6, 7, 8]
