"""`up_gate` and `down` of several groups in one call: against numpy, what they move, and when they are called so."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_cases import DTYPES, assert_close, assert_modelled, factors, matrix

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels import down, pack, reference, up_gate
from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.kernels.tiling.blocks import hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.groups import apart_bytes, calls_of
from nxdi_svd_plugin.kernels.tiling.planner import choose
from nxdi_svd_plugin.simulator import TensorSpec, simulate

BF16 = DTYPES["bf16"]
SHAPES = [(1, 256, 512, 128), (130, 320, 512, 200), (300, 576, 750, 72), (513, 130, 256, 256)]
"""Tokens, hidden, neurons and rank of a group."""


def lists(groups):
    """[[u, v, ...] of each group] as lists of each factor."""
    return [list(each) for each in zip(*groups, strict=True)]


def wide(arrays):
    return [each.astype(np.float64) for each in arrays]


def exactly_planned(trace, chain):
    """What the planner says is what the simulator counts."""
    plan = choose(chain)
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == hbm_bytes(chain, plan)
    assert_modelled(chain, plan, trace)
    assert trace.sbuf_peak_bytes <= sbuf_bytes(chain, plan)
    assert trace.sbuf_prefetch_peak_bytes <= sbuf_bytes(chain, plan, 2) <= SBUF_BUDGET


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_up_gate(shape, count, dtype):
    tokens, hidden, width, rank = shape
    rng, kind = np.random.default_rng(3), DTYPES[dtype]
    groups = [
        [*factors(rng, hidden, rank, width, kind), *factors(rng, hidden, rank, width, kind)] for _ in range(count)
    ]
    x = matrix(rng, tokens, hidden, kind)
    packed = [[*pack(*each[:2], "up_gate"), *pack(*each[2:], "up_gate")] for each in groups]
    outs, trace = simulate(up_gate, x, *lists(packed), seed=tokens, aws_style=True)
    for out, each in zip(outs, groups, strict=True):
        assert_close(out, reference.up_gate(*wide([x, *each])), reference.up_gate(x, *each, dtype=kind))
    exactly_planned(trace, Chain("up_gate", tokens, hidden, (rank, rank), width, x.itemsize, groups=count))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_down(shape, count, dtype):
    tokens, hidden, width, rank = shape
    rng, kind = np.random.default_rng(1), DTYPES[dtype]
    groups = [factors(rng, width, rank, hidden, kind) for _ in range(count)]
    hs = [matrix(rng, width, tokens, kind) for _ in range(count)]
    packed = lists([pack(*each, "down") for each in groups])
    y, trace = simulate(down, hs, *packed, seed=tokens, aws_style=True)
    truth = sum(reference.down(*wide([h, *each])) for h, each in zip(hs, groups, strict=True))
    low = sum(reference.down(h, *each, dtype=kind).astype(np.float64) for h, each in zip(hs, groups, strict=True))
    assert_close(y, truth, low.astype(kind))
    exactly_planned(trace, Chain("down", tokens, width, (rank,), hidden, y.itemsize, groups=count))


RUNS = ((0, 1), (3, 4)), ((1, 3),), ((2, 4),)
"""Pivots of gate, up and down, of six tiles of neurons."""


def identity_at(c, runs, width):
    """[I | C]: the pivots' columns are unit vectors in order, C has the others."""
    whole, pivots = (
        np.zeros((len(c), width), c.dtype),
        [128 * n + k for a, b in runs for n in range(a, b) for k in range(128)],
    )
    whole[range(len(pivots)), pivots] = 1
    whole[:, [n for n in range(width) if n not in set(pivots)]] = c
    return whole


@pytest.mark.parametrize("tokens", [1, 200])
def test_the_whole_mlp_with_pivots(tokens):
    """Two groups, through both kernels: what `up_gate` returns is what `down` takes."""
    rng, hidden, width, rank = np.random.default_rng(2), 320, 768, 300
    x, truth, low, up_groups, down_groups = matrix(rng, tokens, hidden, BF16), 0, 0, [], []
    for _ in range(2):
        (ug, cg), (uu, cu) = (factors(rng, hidden, rank, 512, BF16) for _ in range(2))
        cd, vd = factors(rng, 512, rank, hidden, BF16)
        up_groups.append([f for pair in ((ug, cg), (uu, cu)) for f in pack(*pair, "up_gate", interpolative=True)])
        down_groups.append(pack(cd, vd, "down", interpolative=True))
        vg, vu, ud = (
            identity_at(cg, RUNS[0], width),
            identity_at(cu, RUNS[1], width),
            identity_at(cd.T, RUNS[2], width).T,
        )
        plain = [x, ug, vg, uu, vu, ud, vd]
        truth = truth + reference.mlp(*wide(plain))
        low = low + reference.mlp(*plain, dtype=BF16).astype(np.float64)
    hs, _ = simulate(up_gate, x, *lists(up_groups), pivots=RUNS[:2], aws_style=True)
    y, _ = simulate(down, list(hs), *lists(down_groups), pivots=RUNS[2], aws_style=True)
    assert_close(y, truth, low.astype(BF16))


LARGE = [
    ("up_gate", 2048, 2048, (1280, 1280), 4096, 2),
    ("up_gate", 2048, 3072, (1664, 1664), 4096, 2),
    ("down", 2048, 4096, (1280,), 2048, 2),
    ("down", 2048, 7168, (2432,), 4096, 2),
    ("down", 1000, 2432, (1152,), 2560, 4),
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_models_shapes_are_as_planned(case):
    """Several strips and sub-strips, in count-only mode."""
    kernel, tokens, inputs, ranks, outputs, groups = case
    chain, spec = Chain(kernel, tokens, inputs, ranks, outputs, groups=groups), np.dtype(BF16)
    shapes = [shape for rank in ranks for shape in packed_shapes(inputs, rank, outputs)]
    weights = [[TensorSpec(shape, spec)] * groups for shape in shapes]
    x = TensorSpec((tokens, inputs), spec) if kernel == "up_gate" else [TensorSpec((inputs, tokens), spec)] * groups
    trace = simulate(up_gate if kernel == "up_gate" else down, x, *weights, count_only=True, aws_style=True)[1]
    exactly_planned(trace, chain)
    assert trace.spill_save_bytes == 0


def test_x_goes_in_once_and_y_out_once():
    """Llama-3.2-1B, two groups on a core: 2048 tokens of 2048 numbers in bfloat16."""
    x = 2 * 2048 * 2048
    up, lower = Chain("up_gate", 2048, 2048, (1280, 1280), 4096), Chain("down", 2048, 4096, (1280,), 2048)
    assert calls_of(up, 2) == calls_of(lower, 2) == 1
    one, apart = (hbm_bytes(each, choose(each)) for each in (replace(up, groups=2), up))
    assert sum(one) == 2 * sum(apart) - x == apart_bytes(up, 2) - x
    read, written = hbm_bytes(replace(lower, groups=2), choose(replace(lower, groups=2)))
    assert written == x and read + written < apart_bytes(lower, 2)
    assert calls_of(up, 1) == 1


def test_a_call_for_each_where_shorter_strips_cost_more():
    """Llama-3.2-3B's gate and up: Xᵀ beside both T halves the strip, so that all weights are read twice."""
    chain = Chain("up_gate", 2048, 3072, (1664, 1664), 4096)
    one = replace(chain, groups=2)
    assert sum(hbm_bytes(one, choose(one))) > apart_bytes(chain, 2)
    assert calls_of(chain, 2) == 2


def specs(*shapes):
    return [TensorSpec(shape, np.dtype(BF16)) for shape in shapes]


def test_what_does_not_fit_together_is_refused():
    (u, v), x = packed_shapes(256, 128, 512), TensorSpec((4, 256), np.dtype(BF16))
    other = packed_shapes(256, 256, 512)[0]
    with pytest.raises(KernelError, match="one shape for every group"):
        simulate(up_gate, x, specs(u, other), specs(v, v), specs(u, u), specs(v, v), count_only=True)
    with pytest.raises(KernelError, match="one shape for every group"):
        simulate(up_gate, x, specs(u, u), specs(v), specs(u, u), specs(v, v), count_only=True)
    with pytest.raises(KernelError, match=r"strip \(4,\) is for one group, not for 2"):
        simulate(up_gate, x, *[specs(u, u), specs(v, v)] * 2, strip=(4,), count_only=True)
    with pytest.raises(KernelError, match="for 2 groups; it takes 2, of one shape"):
        simulate(down, specs((256, 4)), specs(u, u), specs(v, v), count_only=True)
    with pytest.raises(KernelError, match="xuv takes no 2 groups"):
        Chain("xuv", 4, 256, (128,), 512, groups=2)
