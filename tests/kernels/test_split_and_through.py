"""The two schedules for wide inputs: fp32 sums of T in SBUF, and T through HBM, each forced at small shapes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, assert_close, assert_modelled, factors, matrix, run

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels import checks, reference
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.packing import from_kernel_order, pack, to_kernel_order
from nxdi_svd_plugin.kernels.tiling import planner, refill
from nxdi_svd_plugin.kernels.tiling import through as through_module
from nxdi_svd_plugin.kernels.tiling.blocks import hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import Operand, Output
from nxdi_svd_plugin.kernels.tiling.engines import modelled_seconds
from nxdi_svd_plugin.kernels.tiling.planner import LONGER, SAVING, choose, forced
from nxdi_svd_plugin.kernels.tiling.refill import refill_plans
from nxdi_svd_plugin.kernels.tiling.through import first_products, through_plans
from nxdi_svd_plugin.simulator import simulate

SHAPES = [  # tokens, inputs, rank, outputs
    (600, 512, 384, 640),
    (130, 384, 300, 500),  # a rank and outputs of odd size
    (1100, 640, 1100, 256),  # several parts of T, two rows of tokens
]


def case(kernel, shape, dtype, seed=1):
    tokens, inputs, rank, outputs = shape
    rng = np.random.default_rng(seed)
    size = (inputs, tokens) if kernel == "down" else (tokens, inputs)
    ranks = (rank, rank + 128) if kernel == "up_gate" else (rank,)
    return matrix(rng, *size, DTYPES[dtype]), [factors(rng, inputs, r, outputs, DTYPES[dtype]) for r in ranks]


def interpolative_down(tokens, inputs, rank, outputs, runs, dtype):
    """(h_t, u = [I ; C] over all inputs, v, packed factors)."""
    rng = np.random.default_rng(2)
    own = np.concatenate([np.arange(128 * a, 128 * b) for a, b in runs])
    h_t = matrix(rng, inputs, tokens, dtype)
    c, v = factors(rng, inputs - len(own), rank, outputs, dtype)
    u = np.zeros((inputs, rank), dtype)
    u[own, np.arange(len(own))] = 1
    u[np.setdiff1d(np.arange(inputs), own)] = c
    return h_t, u, v, pack(c, v, "down", interpolative=True)


def interpolative_up(rng, inputs, rank, outputs, runs, dtype):
    """(u, v = [I | C] over all outputs, packed factors); a pair without runs."""
    own = np.concatenate([np.arange(0), *(np.arange(128 * a, 128 * b) for a, b in runs)]).astype(int)
    u, c = factors(rng, inputs, rank, outputs - len(own), dtype)
    v = np.zeros((rank, outputs), dtype)
    v[np.arange(len(own)), own] = 1
    v[:, np.setdiff1d(np.arange(outputs), own)] = c
    return u, v, pack(u, c, "up_gate", interpolative=bool(runs))


def assert_counted(chain, plan, trace):
    assert hbm_bytes(chain, plan) == (trace.hbm_read_bytes, trace.hbm_write_bytes)
    assert_modelled(chain, plan, trace)
    assert trace.sbuf_peak_bytes <= sbuf_bytes(chain, plan)
    assert trace.psum_peak_banks <= 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", ["xuv", "up_gate", "down"])
def test_a_split_contraction(kernel, shape, dtype):
    x, pairs = case(kernel, shape, dtype)
    for split, strip in ((1, 300), (2, 512)):
        y, trace, truth, low = run(kernel, x, pairs, strip=(strip,), split=split)
        assert_close(y, truth, low)
        ranks = tuple(u.shape[1] for u, _ in pairs)
        chain = Chain(kernel, shape[0], shape[1], ranks, shape[3], x.dtype.itemsize)
        assert_counted(chain, forced(chain, (strip,), split), trace)


def test_a_split_contraction_of_rows_that_are_no_whole_tiles():
    x, pairs = case("xuv", (300, 500, 256, 384), "fp32")
    for transposed in (False, True):
        y, _, truth, low = run("xuv", x, pairs, strip=(256,), split=2, transposed_output=transposed)
        assert_close(y, truth, low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_split_contraction_with_pivots(split, dtype):
    """Pivots are no rows of U: their tiles of Hᵀ join the sums, and blocks end where a run of them begins."""
    runs = ((1, 2), (5, 7))
    h_t, u, v, packed = interpolative_down(300, 1280, 512, 256, runs, DTYPES[dtype])
    y, trace = simulate(down, to_kernel_order(h_t), *packed, pivots=runs, strip=(160,), split=split, aws_style=True)
    truth = reference.down(h_t.astype(np.float64), u.astype(np.float64), v.astype(np.float64))
    assert_close(y, truth, reference.down(h_t, u, v, dtype=h_t.dtype))
    chain = Chain("down", 300, 1280, (512,), 256, h_t.dtype.itemsize, pivots=(runs,))
    assert_counted(chain, forced(chain, (160,), split), trace)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "rank", "outputs"), [(300, 384, 1000), (70, 200, 640), (1, 128, 300)])
def test_v_that_moves_by_several_packed_tiles(tokens, rank, outputs, dtype):
    """Four packed tiles of 128 columns are the 512 of a matmul; whole tiles and a part of one are left."""
    x, pairs = case("xuv", (tokens, 256, rank, outputs), dtype)
    y, trace, truth, low = run("xuv", x, pairs, strip=(tokens,))
    assert_close(y, truth, low)
    chain = Chain("xuv", tokens, 256, (rank,), outputs, x.dtype.itemsize)
    plan = forced(chain, (tokens,))
    assert plan.buffers.side > 1
    assert_counted(chain, plan, trace)
    one = replace(plan, buffers=replace(plan.buffers, side=1))
    assert modelled_seconds(chain, plan) <= modelled_seconds(chain, one)


def test_what_cannot_be_split_is_refused():
    chain = Chain("down", 300, 500, (256,), 256)
    with pytest.raises(KernelError, match="one sub-strip and two blocks"):
        forced(chain, (300,), 1)  # Hᵀ of no whole tiles
    with pytest.raises(KernelError, match="one sub-strip and two blocks"):
        forced(Chain("down", 300, 512, (256,), 256), (100, 50), 1)
    with pytest.raises(KernelError, match="one sub-strip and two blocks"):
        forced(Chain("down", 300, 512, (256,), 256), (100,), 4)


BLOCKS = {
    "sums": lambda rows, columns, step, width: Output(min(rows, 256), min(columns, max(step, 384 // step * step)), 256),
    "x kept": lambda rows, columns, step, width: Operand(True, min(rows, 256), min(columns, step)),
    "w kept": lambda rows, columns, step, width: Operand(False, min(columns, step), min(rows, 256)),
    "w kept, stored in pieces": lambda rows, columns, step, width: Operand(False, columns, min(rows, 256), width),
    "loads of no whole tiles": lambda rows, columns, step, width: Operand(
        True, min(rows, 256), min(columns, 154 if (step, width) == (128, 512) else step)
    ),
}


@pytest.fixture
def two_matmuls(monkeypatch):
    """Every call goes through HBM, in blocks of this kind."""

    def use(blocks):
        monkeypatch.setattr(planner, "choose", lambda chain: [*through_plans(chain), *refill_plans(chain)][0])
        monkeypatch.setattr(
            through_module,
            "product_plans",
            lambda product, itemsize, room: [
                BLOCKS[blocks](
                    product.rows, product.columns, product.width if product.w == "packed" else 128, product.width
                )
            ],
        )
        monkeypatch.setattr(refill, "SBUF_BUDGET", 10 * 1024)
        clear()

    def clear():
        for cached in (through_plans, first_products, refill_plans, checks.planned, checks.planned_groups):
            cached.cache_clear()

    yield use
    clear()


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("shape", [(600, 512, 384, 640), (1, 256, 128, 500), (700, 640, 256, 1000)], ids=str)
@pytest.mark.parametrize(("kernel", "transposed"), [("down", False), ("xuv", False), ("xuv", True)])
def test_through_hbm(kernel, transposed, shape, blocks, two_matmuls):
    two_matmuls(blocks)
    for dtype in ("bf16", "fp32"):
        x, pairs = case(kernel, shape, dtype)
        options = {"transposed_output": transposed} if kernel == "xuv" else {}
        y, trace, truth, low = run(kernel, x, pairs, **options)
        assert_close(y, truth, low)
        chain = Chain(kernel, shape[0], shape[1], (shape[2],), shape[3], x.dtype.itemsize, transposed)
        assert_counted(chain, through_plans(chain)[0], trace)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("runs", [((1, 2), (5, 7)), ((0, 3),), ((6, 10),)], ids=str)
@pytest.mark.parametrize(("tokens", "rank", "outputs"), [(600, 512, 640), (1, 512, 500), (700, 640, 300)])
def test_through_hbm_with_pivots(tokens, rank, outputs, runs, blocks, two_matmuls):
    """The pivots' tiles of Hᵀ join T on its way to HBM, whatever block their rows are in."""
    two_matmuls(blocks)
    for dtype in ("bf16", "fp32"):
        h_t, u, v, packed = interpolative_down(tokens, 1280, rank, outputs, runs, DTYPES[dtype])
        y, trace = simulate(down, to_kernel_order(h_t), *packed, pivots=runs, aws_style=True)
        truth = reference.down(h_t.astype(np.float64), u.astype(np.float64), v.astype(np.float64))
        assert_close(y, truth, reference.down(h_t, u, v, dtype=h_t.dtype))
        chain = Chain("down", tokens, 1280, (rank,), outputs, h_t.dtype.itemsize, pivots=(runs,))
        assert_counted(chain, through_plans(chain)[0], trace)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("pivots", [((), ()), (((0, 2),), ((1, 3), (4, 5)))], ids=["pair", "interpolative"])
@pytest.mark.parametrize(("tokens", "hidden", "outputs"), [(600, 512, 768), (1, 256, 640), (333, 384, 896)])
def test_both_x_u_through_hbm(tokens, hidden, outputs, pivots, blocks, two_matmuls):
    """up_gate: strips take T back, where some of its tiles are the output of gate or up."""
    two_matmuls(blocks)
    for dtype in ("bf16", "fp32"):
        rng = np.random.default_rng(3)
        x, plain, packed = matrix(rng, tokens, hidden, DTYPES[dtype]), [], []
        for rank, runs in zip((384, 512), pivots, strict=True):
            u, v, pair = interpolative_up(rng, hidden, rank, outputs, runs, DTYPES[dtype])
            plain, packed = [*plain, u, v], [*packed, *pair]
        y, trace = simulate(up_gate, x, *packed, pivots=pivots, aws_style=True)
        truth = reference.up_gate(x.astype(np.float64), *(each.astype(np.float64) for each in plain))
        y = from_kernel_order(y) if any(pivots) else y
        assert_close(y, truth, reference.up_gate(x, *plain, dtype=x.dtype))
        held = pivots if any(pivots) else ()
        chain = Chain("up_gate", tokens, hidden, (384, 512), outputs, x.dtype.itemsize, pivots=held)
        plan = refill_plans(chain)[0]
        assert plan.firsts and (tokens < 100 or len(plan.strips) > 1)
        assert_counted(chain, plan, trace)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(["xuv", "down"]),
    st.integers(1500, 6000),
    st.integers(40, 112),
    st.integers(8, 24),
    st.integers(2000, 6000),
)
def test_wide_inputs_get_a_plan_that_fits_and_is_no_slower(kernel, tokens, inputs, rank, outputs):
    chain = Chain(kernel, tokens, 128 * inputs, (128 * rank,), outputs)
    plan = choose(chain)
    assert sbuf_bytes(chain, plan, 2) <= SBUF_BUDGET
    for matmuls in through_plans(chain):
        slower = modelled_seconds(chain, plan) > SAVING * modelled_seconds(chain, matmuls)
        more = sum(hbm_bytes(chain, plan)) > LONGER * sum(hbm_bytes(chain, matmuls))
        assert not (slower and more)
