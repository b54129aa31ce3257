"""`mlp`, the whole MLP of a few tokens in one kernel: against numpy, and what it moves."""

import numpy as np
import pytest
from kernel_cases import DTYPES, assert_close, assert_seconds, factors, matrix

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels import down, mlp, pack, reference, up_gate
from nxdi_svd_plugin.kernels.checks import planned_mlp
from nxdi_svd_plugin.kernels.measure.baselines import add
from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.kernels.tiling.decode import fits, mlp_bytes, mlp_chains, reserved_bytes
from nxdi_svd_plugin.kernels.tiling.mlp_work import mlp_work
from nxdi_svd_plugin.simulator import TensorSpec, simulate

BF16 = DTYPES["bf16"]
MODELS = {
    "llama-1b": (2048, 8192, 1536, 1280),
    "llama-3b": (3072, 8192, 2176, 1792),
    "llama-8b": (4096, 14336, 3072, 2560),
    "qwen3-1.7b": (2048, 6144, 1408, 1152),
    "qwen3-4b": (2560, 9728, 1920, 1664),
    "qwen3-8b": (4096, 12288, 2944, 2432),
}
"""Hidden, intermediate, Eq. 5's rank at ratio 0.05 and at 0.20 (test_must_reach.rank)."""


def group(rng, hidden, width, ranks, dtype):
    """Plain gate, up and down pairs of one group."""
    gate, up, lower = ranks
    pairs = factors(rng, hidden, gate, width, dtype), factors(rng, hidden, up, width, dtype)
    return [*pairs, factors(rng, width, lower, hidden, dtype)]


def packed(pairs, interpolative=False):
    """The six factors of a group as the kernel reads them."""
    kinds = zip(pairs, ("up_gate", "up_gate", "down"), strict=True)
    return [factor for (u, v), kernel in kinds for factor in pack(u, v, kernel, interpolative=interpolative)]


def numpy_mlp(x, groups, dtype=None):
    """The sum over groups; with a dtype every product is rounded to it, the sum of the groups once."""
    total = 0
    for gate, up, lower in groups:
        total = total + reference.mlp(x, *gate, *up, *lower, dtype=dtype).astype(np.float64)
    return total if dtype is None else total.astype(dtype)


def check(x, groups, y):
    wide = [[[f.astype(np.float64) for f in pair] for pair in pairs] for pairs in groups]
    assert_close(y, numpy_mlp(x.astype(np.float64), wide), numpy_mlp(x, groups, x.dtype))


SHAPES = [
    (1, 256, 512, (128, 128, 128)),
    (8, 576, 1536, (384, 384, 384)),
    (5, 320, 1000, (72, 200, 333)),
    (128, 384, 640, (256, 128, 384)),
    (77, 96, 130, (40, 24, 60)),
    (2, 1100, 256, (130, 129, 127)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_numpy(shape, dtype):
    tokens, hidden, width, ranks = shape
    rng = np.random.default_rng(0)
    pairs, x = group(rng, hidden, width, ranks, DTYPES[dtype]), matrix(rng, tokens, hidden, DTYPES[dtype])
    y, trace = simulate(mlp, x, *packed(pairs), seed=tokens, aws_style=True)
    check(x, [pairs], y)
    up, lower = mlp_chains(tokens, hidden, width, ranks, x.itemsize)
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == mlp_bytes(up, lower)
    assert_seconds(mlp_work(up, lower).seconds, trace)
    assert trace.sbuf_peak_bytes <= reserved_bytes(up, lower, in_flight=1)
    assert trace.sbuf_prefetch_peak_bytes <= reserved_bytes(up, lower) <= SBUF_BUDGET


def planned(tokens, hidden, width, ranks, dtype="bf16", pivots=((), (), ())):
    gate, up, lower = ranks
    pairs = packed_shapes(hidden, gate, width), packed_shapes(hidden, up, width), packed_shapes(width, lower, hidden)
    names = (np.dtype(DTYPES[dtype]).name,) * 7
    return planned_mlp((tokens, hidden), tuple((shape,) for pair in pairs for shape in pair), names, pivots)


@pytest.mark.parametrize(("tokens", "width", "ranks"), [(1, 512, (128, 128, 256)), (7, 750, (72, 130, 200))])
@pytest.mark.parametrize("count", [2, 3])
def test_several_groups_are_summed(count, tokens, width, ranks):
    rng, hidden = np.random.default_rng(1), 320
    groups = [group(rng, hidden, width, ranks, BF16) for _ in range(count)]
    x = matrix(rng, tokens, hidden, BF16)
    y, trace = simulate(mlp, x, *(list(each) for each in zip(*map(packed, groups), strict=True)), aws_style=True)
    check(x, groups, y)
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == mlp_bytes(*mlp_chains(tokens, hidden, width, ranks), count)
    assert_seconds(mlp_work(*mlp_chains(tokens, hidden, width, ranks), count).seconds, trace)


def identity_at(c, runs, width):
    """[I | C]: the pivots' columns are unit vectors in order, C has the others."""
    whole = np.zeros((len(c), width), c.dtype)
    pivots = [n for start, stop in runs for n in range(128 * start, 128 * stop)]
    others = [n for n in range(width) if n not in set(pivots)]
    whole[range(len(pivots)), pivots] = 1
    whole[:, others] = c
    return whole


def interpolative(rng, hidden, width, ranks, pivots):
    """(plain pairs with the identity written out, the six packed factors); runs may be empty."""
    plain, given = [], []
    for rank, runs, lower in zip(ranks, pivots, (False, False, True), strict=True):
        made = width - 128 * sum(stop - start for start, stop in runs)
        if lower:
            c, v = factors(rng, made, rank, hidden, BF16)
            plain.append((identity_at(c.T, runs, width).T, v))
            given += pack(c, v, "down", interpolative=True)
        else:
            u, c = factors(rng, hidden, rank, made, BF16)
            plain.append((u, identity_at(c, runs, width)))
            given += pack(u, c, "up_gate", interpolative=True)
    return plain, given


PIVOTS = {
    "all": (((0, 1), (3, 4)), ((1, 3),), ((2, 4),)),
    "overlapping": (((0, 2),), ((0, 2),), ((0, 1), (5, 6))),
    "gate and up": (((0, 2),), ((2, 4),), ()),
    "gate": (((4, 6),), (), ()),
    "down": ((), (), ((0, 1), (2, 3))),
}


@pytest.mark.parametrize("tokens", [1, 9, 128])
@pytest.mark.parametrize("pivots", PIVOTS.values(), ids=PIVOTS)
def test_pivots_of_any_projection(pivots, tokens):
    """Ranks above the core's own pivots, one of them no whole tiles; six tiles of neurons."""
    rng = np.random.default_rng(2)
    plain, given = interpolative(rng, 320, 768, (256, 300, 384), pivots)
    x = matrix(rng, tokens, 320, BF16)
    y, trace = simulate(mlp, x, *given, pivots=pivots, seed=tokens, aws_style=True)
    check(x, [plain], y)
    halves = mlp_chains(tokens, 320, 768, (256, 300, 384), pivots=pivots)
    assert_seconds(mlp_work(*halves).seconds, trace)


def test_pivots_in_several_groups():
    rng, pivots = np.random.default_rng(3), PIVOTS["all"]
    groups = [interpolative(rng, 256, 768, (256, 256, 256), pivots) for _ in range(2)]
    x = matrix(rng, 3, 256, BF16)
    y, _ = simulate(
        mlp,
        x,
        *(list(each) for each in zip(*(given for _, given in groups), strict=True)),
        pivots=pivots,
        aws_style=True,
    )
    check(x, [plain for plain, _ in groups], y)


def shapes_of(hidden, width, rank):
    """Placeholders of a group's six packed factors."""
    gate, lower = packed_shapes(hidden, rank, width), packed_shapes(width, rank, hidden)
    return [TensorSpec(shape, np.dtype(BF16)) for shape in (*gate, *gate, *lower)]


def count(tokens, hidden, *factors):
    return simulate(mlp, TensorSpec((tokens, hidden), np.dtype(BF16)), *factors, count_only=True)[1]


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("low", [0, 1], ids=["0.05", "0.20"])
@pytest.mark.parametrize("model", MODELS)
def test_everything_is_moved_once_in_long_runs(model, low, tp, tokens):
    """Weights, x and y once; loads of 4 to 8 KiB a partition, no store below 256 bytes; every other engine hidden."""
    hidden, intermediate, *ranks = MODELS[model]
    width, rank = intermediate // tp, ranks[low]
    trace = count(tokens, hidden, *shapes_of(hidden, width, rank))
    once = 2 * (3 * rank * (hidden + width) + 2 * tokens * hidden)
    assert once <= trace.hbm_bytes <= 1.01 * once
    assert trace.hbm_write_bytes == 2 * tokens * hidden
    assert min(trace.dma_runs) >= 256 and max(trace.dma_runs) <= 8 * 1024
    long = sum(run * number for run, number in trace.dma_runs.items() if run >= 4 * 1024)
    assert long >= 0.9 * trace.hbm_bytes
    busy = trace.modelled_seconds
    assert all(2 * seconds < busy["dma"] for engine, seconds in busy.items() if engine != "dma")


def test_groups_in_one_call_move_less_than_a_call_each():
    """Llama-3.2-1B in two groups on one core: x once instead of twice, y once and no sum in HBM."""
    hidden, width, rank, tokens = 2048, 4096, 1280, 8
    one = shapes_of(hidden, width, rank)
    together = count(tokens, hidden, *([each, each] for each in one))
    apart, y = count(tokens, hidden, *one), TensorSpec((tokens, hidden), np.dtype(BF16))
    summed = simulate(add, y, y, count_only=True)[1]
    assert together.hbm_bytes == 2 * apart.hbm_bytes - 2 * 2 * tokens * hidden
    assert together.modelled_latency_us < 2 * apart.modelled_latency_us + summed.modelled_latency_us
    assert together.pe_cycles <= 2 * apart.pe_cycles


@pytest.mark.parametrize("tokens", [1, 8, 128])
def test_less_than_two_kernels_move(tokens):
    hidden, width, rank = 2048, 4096, 1536
    factors = shapes_of(hidden, width, rank)
    x, h_t = (TensorSpec(shape, np.dtype(BF16)) for shape in ((tokens, hidden), (width, tokens)))
    first = simulate(up_gate, x, *factors[:4], count_only=True)[1]
    second = simulate(down, h_t, *factors[4:], count_only=True)[1]
    trace = count(tokens, hidden, *factors)
    assert trace.hbm_bytes == first.hbm_bytes + second.hbm_bytes - 2 * 2 * width * tokens


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((129, 256, 512, (128, 128, 128)), "bf16", "129 tokens, at most 128 go in one call; use up_gate and down"),
        ((128, 4096, 14336, (3072, 3072, 3072)), "fp32", "bytes of SBUF per partition of 174080; use up_gate and down"),
    ],
)
def test_what_does_not_fit_is_refused(shape, dtype, message):
    with pytest.raises(KernelError, match=message):
        planned(*shape, dtype)


def test_factors_that_do_not_belong_together_are_refused():
    def changed(at, shape):
        given = shapes_of(256, 512, 128)
        given[at] = shape
        return given

    wide = TensorSpec((128, 128 * 3), np.dtype(BF16))
    with pytest.raises(KernelError, match="down makes 384 columns of an input of 256"):
        count(1, 256, *changed(5, wide))
    with pytest.raises(KernelError, match="must have one shape for every group, as many as the others"):
        count(1, 256, *changed(0, [wide, wide]))
    with pytest.raises(KernelError, match="must have the input's bfloat16"):
        count(1, 256, *changed(2, TensorSpec((128, 256), np.dtype(np.float32))))


def test_all_six_models_fit_at_128_tokens():
    for hidden, intermediate, rank, _ in MODELS.values():
        assert fits(*mlp_chains(128, hidden, intermediate, (rank,) * 3))
        assert not fits(*mlp_chains(129, hidden, intermediate, (rank,) * 3))
