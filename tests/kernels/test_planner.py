"""The planner against exhaustive search and against what the simulator counts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_modelled, count

from nxdi_svd_plugin.errors import KernelError, SvdError
from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels.measure.calls import Share, fused_mlp
from nxdi_svd_plugin.kernels.measure.counts import count_call
from nxdi_svd_plugin.kernels.measure.plan import plan_mlp
from nxdi_svd_plugin.kernels.tiling.blocks import Buffers, hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.brute_force import least_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.brute_front import front
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import modelled_seconds
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT
from nxdi_svd_plugin.kernels.tiling.pieces import spans
from nxdi_svd_plugin.kernels.tiling.planner import SAVING, choose, forced
from nxdi_svd_plugin.kernels.tiling.strips import fill
from nxdi_svd_plugin.kernels.tiling.unfused import unfused
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

SMALL = Mlp(1536, *[LowRank(384)] * 3)


def chains(tokens, ranks, extents, itemsizes):
    def chain(kernel, tokens, inputs, rank, outputs, itemsize, transposed):
        ranks = (rank, rank) if kernel == "up_gate" else (rank,)
        return Chain(kernel, tokens, inputs, ranks, outputs, itemsize, transposed and kernel == "xuv")

    kernels = st.sampled_from(["xuv", "up_gate", "down"])
    return st.builds(chain, kernels, tokens, extents, ranks, extents, itemsizes, st.booleans())


def up_to(most):
    """Every other one below one tile, where the kernels have no loops."""
    return st.one_of(st.integers(1, 127), st.integers(1, most))


def simulated(chain):
    options = {"transposed_output": chain.transposed_output} if chain.kernel == "xuv" else {}
    dtype = "bf16" if chain.itemsize == 2 else "fp32"
    return count(chain.kernel, chain.tokens, chain.inputs, chain.ranks, chain.outputs, dtype, **options)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(chains(up_to(3000), up_to(3000), up_to(5000), st.sampled_from([2, 4])))
def test_predictions_are_what_the_simulator_counts(chain):
    blocks, trace = choose(chain), simulated(chain)
    assert blocks.tokens == chain.tokens
    assert hbm_bytes(chain, blocks) == (trace.hbm_read_bytes, trace.hbm_write_bytes)
    assert trace.sbuf_peak_bytes <= sbuf_bytes(chain, blocks)
    assert sbuf_bytes(chain, blocks) <= 1.15 * trace.sbuf_peak_bytes
    assert sbuf_bytes(chain, blocks, IN_FLIGHT) <= SBUF_BUDGET
    assert_modelled(chain, blocks, trace)
    assert trace.psum_peak_banks <= 8


def large_chains(number):
    """Of several strips; half of all extents are whole tiles, without which nothing goes through HBM."""
    rng = random.Random(0)

    def extent(low, high):
        size = rng.randint(low, high)
        return rng.choice([size, size // 128 * 128])

    for _ in range(number):
        kernel, transposed = rng.choice(["xuv", "up_gate", "down"]), rng.random() < 0.5
        rank, tokens = extent(1500, 3000), extent(1500, 3000)
        ranks = (rank, rank) if kernel == "up_gate" else (rank,)
        inputs, outputs = extent(2000, 5000), extent(2000, 5000)
        yield Chain(kernel, tokens, inputs, ranks, outputs, transposed_output=transposed and kernel == "xuv")


def worse_than_the_search(chain):
    """How much more excess over separate matmuls, time or bytes the plan has than one that should have been chosen."""
    plan, bound, found = choose(chain), unfused(chain), front(chain)
    seconds, moved = modelled_seconds(chain, plan), sum(hbm_bytes(chain, plan))
    assert least_hbm_bytes(chain, overlap=True) <= moved and found[0][0] <= SAVING * seconds

    def excess(pair):
        return max(1.0, pair[0] / bound.seconds, pair[1] / bound.hbm_bytes)

    own = excess((seconds, moved))
    fastest = min((pair[0] for pair in found if excess(pair) <= own), default=seconds)
    least = min((pair[1] for pair in found if pair[0] <= seconds), default=moved)
    return max(own / min(map(excess, found)), seconds / fastest, moved / least) - 1


@pytest.mark.slow
def test_plans_are_within_2_percent_of_the_exhaustive_search():
    """All but two of 40: the search needs less room, so that a strip may hold one more matmul's columns."""
    *most, second, worst = sorted(worse_than_the_search(chain) for chain in large_chains(40))
    assert max(most) <= 0.02 and max(second, worst) <= 0.15


def test_a_hand_made_plan():
    chain = Chain("xuv", 300, 256, (128,), 384, transposed_output=True)
    blocks = forced(chain, (100, 40))
    assert blocks.groups == ((2, (100, 40)), (1, (20,)))
    # X and Y once; U for 5 sub-strips, V for 3 strips
    assert sum(hbm_bytes(chain, blocks)) == 2 * (300 * (256 + 384) + 5 * 256 * 128 + 3 * 128 * 384)


def test_longest_first_fills_a_strip_with_the_fewest_sub_strips():
    chain = Chain("xuv", 32768, 7168, (4096,), 18432, transposed_output=True)
    buffers = Buffers(u_rows=8, u_tiles=1, v_tiles=1, x_tiles=16)
    assert fill(chain, buffers, 900) == (900,)
    two = fill(chain, buffers, 1500)
    assert two is not None and len(two) == 2 and two[0] > two[1]


def test_shapes_that_fit_nothing_are_refused_with_the_reason():
    with pytest.raises(KernelError, match="leave no room for"):
        choose(Chain("up_gate", 64, 4096, (400_000, 400_000), 512))
    with pytest.raises(KernelError, match="positive"):
        Chain("down", 0, 128, (128,), 128)
    with pytest.raises(KernelError, match="2 rank"):
        Chain("up_gate", 1, 128, (128,), 128)


def test_the_plan_of_an_mlp_says_what_bounds_it():
    wide = Mlp(8192, *[LowRank(1536)] * 3)
    prefill = plan_mlp(2048, wide, 2048, tp=2)
    assert {plan.bound for plan in prefill.values()} == {"tensor"}
    assert "tensor engine is the bottleneck" in prefill["up_gate"].reason
    few = plan_mlp(2048, Mlp(8192, DENSE, *[LowRank(1536)] * 2), 1)["down"]
    assert few.bound == "dma" and "no plan avoids it" in few.reason
    assert few.to_dict()["strips"] == [(1, [1])]
    thin = plan_mlp(576, Mlp(1536, *[LowRank(128)] * 3), 2048, tp=2)["down"]
    assert thin.bound == "dma" and "reading the input and writing the output takes longer" in thin.reason


@pytest.mark.parametrize("tokens", [1, 128])
def test_few_tokens_go_through_one_kernel(tokens):
    """Its bytes are those that the simulator counts."""
    [(name, plan)] = plan_mlp(2048, Mlp(8192, *[LowRank(1536)] * 3), tokens, tp=2).items()
    assert (name, plan.bound, plan.strips) == ("mlp", "dma", [(1, [tokens])])
    trace = count_call(fused_mlp(tokens, 2048, 4096, *[Share(1536)] * 3))
    assert (plan.hbm_read_bytes, plan.hbm_write_bytes) == (trace.hbm_read_bytes, trace.hbm_write_bytes)
    assert trace.sbuf_peak_bytes <= plan.sbuf_peak_bytes < plan.sbuf_reserved_bytes <= SBUF_BUDGET
    assert "in loads of 4.0 (U of gate and up), 12.0 (both V), 4.0 and 4.0 KiB" in plan.reason
    assert set(plan_mlp(2048, Mlp(8192, *[LowRank(1536)] * 3), 129)) == {"up_gate", "down"}


def test_a_kernel_that_does_not_run_has_no_plan():
    """A dense gate leaves `down` alone; a dense down leaves `up_gate`."""
    pair = LowRank(384)
    assert list(plan_mlp(576, Mlp(1536, DENSE, pair, pair), 1)) == ["down"]
    assert list(plan_mlp(576, Mlp(1536, pair, pair, DENSE), 1)) == ["up_gate"]


@pytest.mark.parametrize(("tp", "alone"), [(1, 1), (2, 1), (4, 2)])
def test_a_group_is_planned_like_an_mlp_of_its_own(tp, alone):
    """Two groups on 1, 2 and 4 cores: the whole group on a core, and half of it."""
    pair, runs = LowRank(384, (), 2), LowRank(512, ((0, 256),), 2)
    group = Mlp(1536, *[LowRank(256, ((0, 256),))] * 2, LowRank(192))
    found = plan_mlp(576, Mlp(3072, runs, runs, pair), 160, tp=tp)
    of_one, held = plan_mlp(576, group, 160, tp=alone), max(1, 2 // tp)
    assert set(found) == {"up_gate", "down"} and {plan.groups for plan in found.values()} == {held}
    assert (found == of_one) == (held == 1)
    tokens_of_x_and_y = 2 * 160 * 576
    for kernel, plan in found.items():  # short strips: all weights once, so that only X and Y are shared
        moved = plan.hbm_read_bytes + plan.hbm_write_bytes
        alike = of_one[kernel].hbm_read_bytes + of_one[kernel].hbm_write_bytes
        assert moved == held * alike - (held - 1) * tokens_of_x_and_y
    few, one = plan_mlp(576, Mlp(3072, runs, runs, pair), 16, tp=tp)["mlp"], plan_mlp(576, group, 16, tp=alone)["mlp"]
    assert few.hbm_read_bytes == held * one.hbm_read_bytes - (held - 1) * 2 * 16 * 576
    assert few.hbm_write_bytes == one.hbm_write_bytes and (few == one) == (held == 1)
    with pytest.raises(SvdError, match="2 groups of neurons do not go evenly on 3 cores"):
        plan_mlp(576, Mlp(3072, runs, runs, pair), 16, tp=3)


def test_a_degree_that_does_not_divide_is_refused():
    with pytest.raises(KernelError, match="does not divide"):
        plan_mlp(576, SMALL, 1, tp=5)
    with pytest.raises(KernelError, match="float8"):
        plan_mlp(576, SMALL, 1, dtype="float8")


@given(st.integers(1, 5000), st.integers(1, 600))
def test_spans_are_few_nearly_equal_and_complete(total, step):
    pieces = spans(total, step)
    assert sum(size for _, size in pieces) == total and max(size for _, size in pieces) <= step
    assert len(pieces) == -(-total // step)
