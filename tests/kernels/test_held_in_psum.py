"""What waits in PSUM for want of room in SBUF: sums of the last rank tile, and gate's product, each forced."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_cases import DTYPES, assert_close, assert_modelled, factors, matrix, run
from test_split_and_through import assert_counted, interpolative_down, interpolative_up

from nxdi_svd_plugin.kernels import checks, reference
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.packing import from_kernel_order, to_kernel_order
from nxdi_svd_plugin.kernels.tiling import planner
from nxdi_svd_plugin.kernels.tiling.blocks import HELD_BANKS, hbm_bytes, holds_banks, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.brute_force import least_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.planner import choose, forced
from nxdi_svd_plugin.simulator import TensorSpec, simulate

SHAPES = [  # tokens, inputs, rank, outputs
    (600, 512, 384, 640),  # the last part of T has no sums in SBUF
    (1100, 640, 1100, 256),  # a last rank tile of odd size
    (130, 384, 512, 500),
]


@pytest.fixture
def held(monkeypatch):
    """Every call has these strips, with what is held in PSUM."""

    def use(strip, split, **buffers):
        def plan(chain):
            blocks = forced(chain, strip, split)
            return replace(blocks, buffers=replace(blocks.buffers, **buffers))

        monkeypatch.setattr(planner, "choose", plan)
        clear()
        return plan

    def clear():
        for cached in (checks.planned, checks.planned_groups):
            cached.cache_clear()

    yield use
    clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", ["xuv", "up_gate", "down"])
def test_sums_of_the_last_rank_tile(kernel, shape, dtype, held):
    tokens, inputs, rank, outputs = shape
    rng = np.random.default_rng(4)
    x = matrix(rng, *((inputs, tokens) if kernel == "down" else (tokens, inputs)), DTYPES[dtype])
    ranks = (rank, rank + 128) if kernel == "up_gate" else (rank,)
    pairs = [factors(rng, inputs, r, outputs, DTYPES[dtype]) for r in ranks]
    for split, strip in ((1, 1100), (2, 300)):
        plan = held((strip,), split, in_psum=True)
        y, trace, truth, low = run(kernel, x, pairs)
        assert_close(y, truth, low)
        chain = Chain(kernel, tokens, inputs, ranks, outputs, x.dtype.itemsize)
        assert_counted(chain, plan(chain), trace)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("split", "runs"), [(1, ((1, 3), (4, 6))), (3, ((1, 2), (5, 7)))])
def test_sums_of_the_last_rank_tile_with_pivots(split, runs, dtype, held):
    """The last rank tile is a pivot itself, then none."""
    plan = held((600,), split, in_psum=True)
    h_t, u, v, packed = interpolative_down(700, 1280, 512, 256, runs, DTYPES[dtype])
    y, trace = simulate(down, to_kernel_order(h_t), *packed, pivots=runs, aws_style=True)
    truth = reference.down(h_t.astype(np.float64), u.astype(np.float64), v.astype(np.float64))
    assert_close(y, truth, reference.down(h_t, u, v, dtype=h_t.dtype))
    chain = Chain("down", 700, 1280, (512,), 256, h_t.dtype.itemsize, pivots=(runs,))
    assert_counted(chain, plan(chain), trace)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pivots", [((), ()), (((0, 2),), ((1, 3), (4, 5)))], ids=["pair", "interpolative"])
@pytest.mark.parametrize(("tokens", "strip"), [(600, (600,)), (600, (300, 290)), (333, (160, 93, 47)), (1, (1,))])
def test_gates_product_waits_for_ups(tokens, strip, pivots, dtype, held):
    plan = held(strip, 0, apart=True)
    rng = np.random.default_rng(5)
    x, plain, packed = matrix(rng, tokens, 300, DTYPES[dtype]), [], []
    for rank, runs in zip((384, 512), pivots, strict=True):
        u, v, pair = interpolative_up(rng, 300, rank, 896, runs, DTYPES[dtype])
        plain, packed = [*plain, u, v], [*packed, *pair]
    y, trace = simulate(up_gate, x, *packed, pivots=pivots, aws_style=True)
    truth = reference.up_gate(x.astype(np.float64), *(each.astype(np.float64) for each in plain))
    y = from_kernel_order(y) if any(pivots) else y
    assert_close(y, truth, reference.up_gate(x, *plain, dtype=x.dtype))
    chain = Chain("up_gate", tokens, 300, (384, 512), 896, x.dtype.itemsize, pivots=pivots if any(pivots) else ())
    assert_counted(chain, plan(chain), trace)
    together = forced(chain, strip)
    assert hbm_bytes(chain, plan(chain)) == hbm_bytes(chain, together)
    assert sbuf_bytes(chain, plan(chain), 2) <= sbuf_bytes(chain, together, 2)


def test_half_of_psum_is_what_may_be_held():
    buffers = forced(Chain("up_gate", 600, 300, (384, 512), 896), (600,)).buffers
    for what in ({"in_psum": True}, {"apart": True}):
        assert holds_banks(replace(buffers, **what), 512 * HELD_BANKS)
        assert not holds_banks(replace(buffers, **what), 512 * HELD_BANKS + 1)
    assert holds_banks(buffers, 512 * HELD_BANKS + 1)


def test_where_it_is_what_makes_the_room():
    """Qwen3-4B, tp 1, ratio 0.05, interpolative: 19 rank tiles of sums and 2048 tokens; twice 18 of T."""
    down_chain = Chain("down", 2048, 9728, (2432,), 2560, pivots=(((3, 22),),))
    plan = choose(down_chain)
    assert plan.buffers.in_psum and plan.strips == [(2048,)]
    assert sum(hbm_bytes(down_chain, plan)) <= 1.02 * least_hbm_bytes(down_chain)
    c, v, h_t = (TensorSpec(shape, DTYPES["bf16"]) for shape in ((128, 57 * 2432), (128, 19 * 2560), (9728, 2048)))
    trace = simulate(down, h_t, c, v, pivots=((3, 22),), count_only=True, aws_style=True)[1]
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == hbm_bytes(down_chain, plan)
    assert_modelled(down_chain, plan, trace)
    assert trace.psum_peak_banks <= 8 and trace.sbuf_prefetch_peak_bytes <= sbuf_bytes(down_chain, plan, 2)
