"""up_gate and down with interpolative factors: numerics, and the plan against what the simulator counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, assert_close, assert_modelled, matrix

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels import reference
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.packing import from_kernel_order, pack, to_kernel_order, unpack
from nxdi_svd_plugin.kernels.tiling.blocks import hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.brute_force import least_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import minimum_pe_cycles, transpose_cycles
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT
from nxdi_svd_plugin.kernels.tiling.planner import choose
from nxdi_svd_plugin.kernels.tiling.segments import segments
from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.stored.runs import length

# gate's pivots are tiles 0-2, up's 2-4, down's 1 and 5-6: overlapping runs, as cells of Gray-code order make them
GATE, UP, DOWN = ((0, 2),), ((2, 4),), ((1, 2), (5, 7))
CASES = [  # tokens, hidden, I tiles, ranks of gate, up, down
    (1, 256, 8, (256, 256, 384)),
    (8, 576, 8, (384, 300, 512)),  # more rank than own pivots (tensor parallelism), a rank of odd size
    (130, 384, 7, (256, 384, 384)),
    (700, 256, 9, (384, 256, 640)),
]


def positions(runs):
    return np.concatenate([np.arange(start * 128, stop * 128) for start, stop in runs])


def whole(c, runs, extent):
    """V = [I | C] over all of I, from c [r, I - pivots]."""
    v = np.zeros((c.shape[0], extent), c.dtype)
    own = positions(runs)
    v[np.arange(len(own)), own] = 1
    v[:, np.setdiff1d(np.arange(extent), own)] = c
    return v


def factors(rng, hidden, rank, extent, runs, dtype):
    """(u [hidden, r], c [r, I - pivots]) of an interpolative gate or up."""
    u = matrix(rng, hidden, rank, dtype, hidden**-0.5)
    return u, matrix(rng, rank, extent - 128 * length(runs), dtype, rank**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_up_gate(case, dtype):
    tokens, hidden, extent, (gate_rank, up_rank, _) = case
    rng, extent = np.random.default_rng(1), 128 * extent
    x = matrix(rng, tokens, hidden, DTYPES[dtype])
    gate = factors(rng, hidden, gate_rank, extent, GATE, DTYPES[dtype])
    up = factors(rng, hidden, up_rank, extent, UP, DTYPES[dtype])
    packed = [a for pair in (gate, up) for a in pack(*pair, "up_gate", interpolative=True)]
    y, _ = simulate(up_gate, x, *packed, pivots=(GATE, UP), aws_style=True)
    plain = [gate[0], whole(gate[1], GATE, extent), up[0], whole(up[1], UP, extent)]
    truth = reference.up_gate(x.astype(np.float64), *(a.astype(np.float64) for a in plain))
    assert_close(from_kernel_order(y), truth, reference.up_gate(x, *plain, dtype=x.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_down(case, dtype):
    tokens, hidden, extent, (_, _, rank) = case
    rng, extent = np.random.default_rng(2), 128 * extent
    h_t = matrix(rng, extent, tokens, DTYPES[dtype])
    v, c = factors(rng, hidden, rank, extent, DOWN, DTYPES[dtype])
    c, v = np.ascontiguousarray(c.T), np.ascontiguousarray(v.T)
    u = whole(c.T, DOWN, extent).T
    y, _ = simulate(down, to_kernel_order(h_t), *pack(c, v, "down", interpolative=True), pivots=DOWN, aws_style=True)
    truth = reference.down(h_t.astype(np.float64), u.astype(np.float64), v.astype(np.float64))
    assert_close(y, truth, reference.down(h_t, u, v, dtype=h_t.dtype))


@pytest.mark.parametrize("strip", [(64,), (100, 50, 30)])
def test_many_strips_and_every_order_of_the_loops(strip):
    rng = np.random.default_rng(3)
    x = matrix(rng, 300, 256, np.float32)
    gate, up = (factors(rng, 256, 384, 1024, runs, np.float32) for runs in (GATE, UP))
    c, v = (np.ascontiguousarray(a.T) for a in factors(rng, 256, 384, 1024, DOWN, np.float32)[::-1])
    packed = [a for pair in (gate, up) for a in pack(*pair, "up_gate", interpolative=True)]
    plain = [gate[0], whole(gate[1], GATE, 1024), up[0], whole(up[1], UP, 1024)]
    for seed in range(3):
        h_t, _ = simulate(up_gate, x, *packed, pivots=(GATE, UP), strip=strip, seed=seed)
        truth = reference.up_gate(x.astype(np.float64), *(a.astype(np.float64) for a in plain))
        assert_close(from_kernel_order(h_t), truth, reference.up_gate(x, *plain, dtype=np.float32))
        y, _ = simulate(down, h_t, *pack(c, v, "down", interpolative=True), pivots=DOWN, strip=strip, seed=seed)
        u, h = whole(c.T, DOWN, 1024).T, from_kernel_order(h_t)
        truth = reference.down(h.astype(np.float64), u.astype(np.float64), v.astype(np.float64))
        assert_close(y, truth, reference.down(h, u, v, dtype=np.float32))


@st.composite
def chains(draw):
    """Random interpolative chains: runs of pivots anywhere, ranks at least as large."""
    extent = draw(st.integers(2, 60))
    kernel = draw(st.sampled_from(["up_gate", "down"]))
    pivots, ranks = [], []
    for _ in range(2 if kernel == "up_gate" else 1):
        edges = sorted(draw(st.sets(st.integers(0, extent), max_size=6)))
        runs = tuple(zip(edges[::2], edges[1::2], strict=False))
        runs = runs if length(runs) < extent else ()
        pivots.append(runs)
        ranks.append(128 * length(runs) + draw(st.integers(0 if runs else 1, 500)))
    hidden, tokens = draw(st.integers(128, 4096)), draw(st.integers(1, 2500))
    inputs, outputs = (hidden, 128 * extent) if kernel == "up_gate" else (128 * extent, hidden)
    return Chain(kernel, tokens, inputs, tuple(ranks), outputs, draw(st.sampled_from([2, 4])), pivots=tuple(pivots))


def counted(chain):
    dtype = np.dtype(DTYPES["bf16" if chain.itemsize == 2 else "fp32"])
    x = TensorSpec((chain.inputs, chain.tokens) if chain.kernel == "down" else (chain.tokens, chain.inputs), dtype)
    weights = []
    for rank, columns in zip(chain.ranks, chain.v_columns, strict=True):
        weights.append(TensorSpec((128, -(-chain.u_rows // 128) * rank), dtype))
        weights.append(TensorSpec((128, -(-rank // 128) * columns), dtype))
    pivots = chain.pivots if chain.kernel == "up_gate" else chain.pivots[0]
    function = {"up_gate": up_gate, "down": down}[chain.kernel]
    return simulate(function, x, *weights, count_only=True, pivots=pivots)[1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chains())
def test_predictions_are_what_the_simulator_counts(chain):
    blocks, trace = choose(chain), counted(chain)
    assert hbm_bytes(chain, blocks) == (trace.hbm_read_bytes, trace.hbm_write_bytes)
    assert_modelled(chain, blocks, trace)
    assert trace.sbuf_peak_bytes <= sbuf_bytes(chain, blocks)
    if min(chain.ranks) >= 128:
        assert sbuf_bytes(chain, blocks) <= 1.15 * trace.sbuf_peak_bytes
    assert sbuf_bytes(chain, blocks, IN_FLIGHT) <= SBUF_BUDGET
    assert trace.psum_peak_banks <= 8


@pytest.mark.parametrize("tokens", [1, 8, 2048])
@pytest.mark.parametrize("tp", [1, 2])
def test_the_traffic_of_llama_8b_shapes(tokens, tp):
    """H 4096, I 14336, r 2560 (ratio 0.10 or so): least traffic, and no product with the identity block."""
    extent, own = 112 // tp, 20 // tp
    gate, up, lower = ((0, own),), ((own, 2 * own),), ((2 * own, 3 * own),)
    for chain in (
        Chain("up_gate", tokens, 4096, (2560, 2560), 128 * extent, pivots=(gate, up)),
        Chain("down", tokens, 128 * extent, (2560,), 4096, pivots=(lower,)),
    ):
        trace, blocks = counted(chain), choose(chain)
        assert sum(hbm_bytes(chain, blocks)) == trace.hbm_read_bytes + trace.hbm_write_bytes
        assert sum(hbm_bytes(chain, blocks)) <= 1.02 * least_hbm_bytes(chain, overlap=True)
        if tokens == 2048:
            assert trace.pe_cycles - transpose_cycles(chain, blocks) <= 1.02 * minimum_pe_cycles(chain)
        else:
            assert sum(hbm_bytes(chain, blocks)) <= 1.02 * (chain.u_bytes + chain.v_bytes + chain.activation_bytes)
        pair = Chain(chain.kernel, tokens, chain.inputs, chain.ranks, chain.outputs)
        assert chain.u_bytes + chain.v_bytes < pair.u_bytes + pair.v_bytes
        assert chain.flops < pair.flops


def test_segments_by_hand():
    found = segments(6, (((0, 2),), ((1, 3), (4, 5))))
    assert [(s.start, s.stop, s.pivots, s.others) for s in found] == [
        (0, 1, (0, None), (0, 0)),
        (1, 2, (1, 0), (-0, 1)),
        (2, 3, (None, 1), (0, 1)),
        (3, 4, (None, None), (1, 1)),
        (4, 5, (None, 2), (2, 2)),
        (5, 6, (None, None), (3, 2)),
    ]


def test_packing_has_an_inverse():
    rng = np.random.default_rng(4)
    u, c = factors(rng, 300, 200, 640, GATE, np.float32)
    for kernel, pair, inputs in (("up_gate", (u, c), 300), ("down", (c.T, u.T), c.shape[1])):
        back = unpack(*pack(*pair, kernel, interpolative=True), inputs, kernel, interpolative=True)
        assert all(np.array_equal(a, b) for a, b in zip(back, pair, strict=True))
    assert np.array_equal(from_kernel_order(to_kernel_order(c.T)), c.T)


@pytest.mark.parametrize(
    ("kernel", "outputs", "pivots", "message"),
    [
        ("xuv", 512, (((0, 1),),), "need up_gate or down"),
        ("up_gate", 500, (((0, 1),), ()), "whole tiles"),
        ("up_gate", 512, (((0, 3),), ()), "no more than the rank"),
        ("up_gate", 512, (((0, 1), (0, 2)), ()), "ascending"),
        ("up_gate", 512, (((3, 5),), ()), "ascending tiles of the 4"),
    ],
)
def test_pivots_that_cannot_be_are_refused(kernel, outputs, pivots, message):
    with pytest.raises(KernelError, match=message):
        Chain(kernel, 4, 256, (256,) if kernel == "xuv" else (256, 256), outputs, pivots=pivots)
