"""The table "What it must reach", counted by the simulator in count-only mode."""

import math
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import DTYPES, count, matrix

from nxdi_svd_plugin.hardware import CLOCK_HZ, DMA_BYTES_PER_SECOND, SBUF_BUDGET
from nxdi_svd_plugin.kernels.measure import baselines
from nxdi_svd_plugin.kernels.measure.baselines import matmul, naive_fusion, result_strip_matmul
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Buffers, hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.brute_force import least_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import (
    Operand,
    Output,
    Product,
    choose_dense,
    dense_hbm_bytes,
    dense_sbuf_bytes,
)
from nxdi_svd_plugin.kernels.tiling.engines import engine_seconds, matmul_cycles, minimum_pe_cycles, transpose_cycles
from nxdi_svd_plugin.kernels.tiling.planner import choose
from nxdi_svd_plugin.kernels.tiling.through import Through, product_cycles
from nxdi_svd_plugin.simulator import TensorSpec, simulate

MODELS = {
    "llama-1b": (2048, 8192),
    "llama-3b": (3072, 8192),
    "llama-8b": (4096, 14336),
    "qwen3-1.7b": (2048, 6144),
    "qwen3-4b": (2560, 9728),
    "qwen3-8b": (4096, 12288),
}


def rank(m, n, ratio=0.05):
    """Eq. 5 of the paper, b = 128 and tau = 0.5, written out: a reference beside factorize.rank."""
    return 128 * math.floor((1 - ratio) * m * n / (m + n) / 128 + 0.5)


def mlp_chains(tokens):
    for hidden, intermediate in MODELS.values():
        r = rank(hidden, intermediate)
        for tp in (1, 2):
            yield Chain("up_gate", tokens, hidden, (r, r), intermediate // tp)
            yield Chain("down", tokens, intermediate // tp, (r,), hidden)


def name(chain):
    return f"{chain.kernel}-{chain.inputs}-{chain.outputs}-{chain.tokens}"


@pytest.mark.parametrize(
    "tokens", [1024, 2048, 4096, *(pytest.param(n, marks=pytest.mark.slow) for n in (8192, 16384, 32768))]
)
@pytest.mark.parametrize("transposed", [True, False])
def test_deepseek_up_proj(tokens, transposed):
    chain = Chain("xuv", tokens, 7168, (4096,), 18432, transposed_output=transposed)
    trace = count("xuv", tokens, 7168, (4096,), 18432, transposed_output=transposed)
    blocks, minimum = choose(chain), minimum_pe_cycles(chain)
    assert trace.hbm_bytes <= 1.02 * least_hbm_bytes(chain)
    assert trace.spill_save_bytes == trace.spill_reload_bytes == 0
    busy = trace.modelled_seconds
    assert all(seconds < busy["pe"] for engine, seconds in busy.items() if engine != "pe")
    assert trace.pe_cycles - transpose_cycles(chain, blocks) <= 1.02 * minimum
    assert trace.pe_cycles <= 1.05 * minimum


@pytest.mark.parametrize("chain", list(mlp_chains(2048)), ids=name)
def test_mlp_prefill_traffic(chain):
    """Against the search that leaves the room for two loads; in all cases but one also against that with one load."""
    trace = count(chain.kernel, chain.tokens, chain.inputs, chain.ranks, chain.outputs)
    assert trace.hbm_bytes == sum(hbm_bytes(chain, choose(chain))) <= 1.02 * least_hbm_bytes(chain, overlap=True)
    single = least_hbm_bytes(chain)
    assert trace.hbm_bytes <= (1.1 if name(chain) == "down-6144-4096-2048" else 1.02) * single
    assert trace.sbuf_peak_bytes <= sbuf_bytes(chain, choose(chain))
    assert sbuf_bytes(chain, choose(chain), 2) <= SBUF_BUDGET


def unfused(chain):
    """(HBM bytes, modelled seconds) of the chain as separate matmuls, one after the other, and a pass for SwiGLU.

    Their Xᵀ costs nothing; where the kernel has to transpose X, that is added to their time.
    """
    moved, seconds = 0, 0.0
    s, m, n = chain.tokens, chain.inputs, chain.outputs
    for r in chain.ranks:
        for call in ((r, m, s), (n, r, s) if chain.writes_transposed else (s, r, n)):
            product = Product(*call, choose_dense(*call))
            once = dense_hbm_bytes(*call, 2, product.plan)
            moved += once
            seconds += max(once / DMA_BYTES_PER_SECOND, product_cycles(product) / CLOCK_HZ["pe"])
    if chain.kind.swiglu:
        moved, seconds = moved + 6 * n * s, seconds + 6 * n * s / DMA_BYTES_PER_SECOND
    if not chain.transposed_input:
        seconds += transpose_cycles(chain, Blocks(((1, (s,)),), Buffers(1, 1, 1, 1))) / CLOCK_HZ["pe"]
    return moved, seconds


def padding(chain):
    """Bytes of a packed U that are zeros: 128 does not divide the neurons of a core (Qwen3-4B at tp 8: 9.5 tiles)."""
    return chain.u_bytes - 2 * sum(chain.ranks) * chain.inputs


LONG = pytest.mark.xfail(
    strict=True, reason="8192 tokens: xuv 4096-14336 is 0.9 % slower, down 7168-4096 moves 1.8 % more than two matmuls"
)


@pytest.mark.parametrize("ratio", [0.05, 0.20])
@pytest.mark.parametrize("tokens", [1, 8, 128, 512, 2048, pytest.param(8192, marks=[pytest.mark.slow, LONG])])
def test_no_kernel_moves_more_or_takes_longer_than_separate_matmuls(tokens, ratio):
    """Of the six models at tp 1, 2 and 8; modelled. 0.5 % for the 64-column matmuls of a rest of tokens."""
    for hidden, intermediate in MODELS.values():
        r = rank(hidden, intermediate, ratio)
        for tp in (1, 2, 8):
            for chain in (
                Chain("up_gate", tokens, hidden, (r, r), intermediate // tp),
                Chain("down", tokens, intermediate // tp, (r,), hidden),
                Chain("xuv", tokens, hidden, (r,), intermediate // tp, transposed_output=True),
            ):
                plan = choose(chain)
                moved, seconds = unfused(chain)
                assert sum(hbm_bytes(chain, plan)) <= moved + padding(chain), chain
                took = max(engine_seconds(chain, plan).values())
                assert took <= 1.005 * seconds + padding(chain) / DMA_BYTES_PER_SECOND, chain
                assert sbuf_bytes(chain, plan, 2) <= SBUF_BUDGET, chain


@pytest.mark.parametrize(
    ("model", "megabytes"), [("llama-1b", 73.4), ("qwen3-1.7b", 56.6), ("llama-3b", 95.2), ("qwen3-4b", 97.5)]
)
def test_down_moves_what_the_papers_authors_move(model, megabytes):
    """NeuronMM f13583f with the best of its block parameters; every operand once. Ours with fp32 sums."""
    hidden, intermediate = MODELS[model]
    trace = count("down", 2048, intermediate, (rank(hidden, intermediate),), hidden)
    assert round(trace.hbm_bytes / 1e6, 1) == megabytes
    assert trace.hbm_bytes == 2 * (
        2048 * (hidden + intermediate) + rank(hidden, intermediate) * (hidden + intermediate)
    )
    busy = trace.modelled_seconds
    assert max(busy, key=lambda engine: busy[engine]) == "pe"


@pytest.mark.parametrize(
    "chain",
    [
        Chain("down", 2048, 14336, (3072,), 4096),  # through HBM
        Chain("down", 8192, 6144, (1408,), 2048),
        Chain("xuv", 2048, 7168, (4096,), 18432, transposed_output=True),
        Chain("xuv", 1024, 7168, (4096,), 18432),  # sums
    ],
    ids=name,
)
def test_the_model_is_what_the_simulator_counts(chain):
    options = {"transposed_output": chain.transposed_output} if chain.kernel == "xuv" else {}
    trace = count(chain.kernel, chain.tokens, chain.inputs, chain.ranks, chain.outputs, **options)
    plan = choose(chain)
    assert isinstance(plan, Through) or plan.buffers.split
    assert hbm_bytes(chain, plan) == (trace.hbm_read_bytes, trace.hbm_write_bytes)
    assert matmul_cycles(chain, plan) + transpose_cycles(chain, plan) == trace.pe_cycles
    modelled = engine_seconds(chain, plan)
    for engine, cycles in (("vector", trace.vector_cycles), ("scalar", trace.scalar_cycles)):
        assert cycles / CLOCK_HZ[engine] == pytest.approx(modelled[engine], rel=0.02, abs=2e-6)


@pytest.mark.parametrize("chain", [*mlp_chains(1), *mlp_chains(8)], ids=name)
def test_token_generation_reads_everything_once(chain):
    trace = count(chain.kernel, chain.tokens, chain.inputs, chain.ranks, chain.outputs)
    once = sum(r * (chain.inputs + chain.outputs) for r in chain.ranks) + chain.tokens * (chain.inputs + chain.outputs)
    assert trace.hbm_bytes <= 1.02 * 2 * once
    busy = trace.modelled_seconds
    assert max(busy, key=lambda engine: busy[engine]) == "dma"


def spec(*shape):
    return TensorSpec(shape, np.dtype("float16"))


def test_table_1():
    """The paper's 4 x FLOP; its traffic explained to 5 % (docs/kernels.md says by which blocks)."""
    s, n = 2048, 8192
    first = simulate(result_strip_matmul, spec(s, s), spec(s, s), columns=512, count_only=True)[1]
    second = simulate(result_strip_matmul, spec(s, s), spec(s, n), columns=512, count_only=True)[1]
    naive = simulate(naive_fusion, spec(s, s), spec(s, s), spec(s, n), count_only=True)[1]
    assert (first.matmul_flops + second.matmul_flops) / 1e9 == pytest.approx(85.90, rel=1e-3)
    assert naive.matmul_flops / 1e9 == pytest.approx(343.60, rel=1e-3)
    transposes = 2 * (s * s * 2) * 2  # X and X·U, each read and written once more
    assert (first.hbm_bytes + second.hbm_bytes + transposes) / 1e6 == pytest.approx(298.66, rel=0.05)
    assert naive.hbm_bytes / 1e6 == pytest.approx(3140.42, rel=0.05)


def test_the_tutorials_result_strip_spills_for_long_inputs():
    short = simulate(result_strip_matmul, spec(1024, 4096), spec(1024, 2048), count_only=True, strict=False)[1]
    long = simulate(result_strip_matmul, spec(1024, 16384), spec(1024, 2048), count_only=True, strict=False)[1]
    assert short.spill_save_bytes == 0 < long.spill_save_bytes


DENSE_SHAPES = {
    (200, 300, 700): Operand,
    (1024, 256, 384): Operand,
    (130, 128, 2000): Operand,
    (1, 640, 512): Operand,
    (1350, 3900, 2249): Output,  # two blocks of columns; blocks of rows: test_sums_in_sbuf_round_once
    (515, 8003, 515): Output,
}


@pytest.mark.parametrize("shape", DENSE_SHAPES)
def test_dense_baseline(shape):
    rows, deep, columns = shape
    rng = np.random.default_rng(0)
    x_t, w = matrix(rng, deep, rows, np.float32), matrix(rng, deep, columns, np.float32)
    y, trace = simulate(matmul, x_t, w)
    np.testing.assert_allclose(y, x_t.T.astype(np.float64) @ w, atol=1e-4 * deep**0.5)
    plan = choose_dense(rows, deep, columns, 4)
    assert isinstance(plan, DENSE_SHAPES[shape])
    assert dense_hbm_bytes(rows, deep, columns, 4, plan) == trace.hbm_bytes
    assert dense_sbuf_bytes(deep, 4, plan) >= trace.sbuf_peak_bytes


@pytest.mark.parametrize("deep", [900, 768, 384, 100])
def test_sums_in_sbuf_round_once(deep, monkeypatch):
    """bf16: half a unit in the last place of the truth, beside what fp32 sums leave."""
    rows, columns, plan = 1300, 1100, Output(640, 512)
    monkeypatch.setattr(baselines, "choose_dense", lambda *_: plan)
    rng = np.random.default_rng(0)
    x_t, w = matrix(rng, deep, rows, DTYPES["bf16"]), matrix(rng, deep, columns, DTYPES["bf16"])
    y, trace = simulate(matmul, x_t, w)
    truth = x_t.T.astype(np.float64) @ w.astype(np.float64)
    assert (np.abs(y.astype(np.float64) - truth) <= 2**-8 * np.abs(truth) + 1e-5 * deep**0.5).all()
    assert dense_hbm_bytes(rows, deep, columns, 2, plan) == trace.hbm_bytes
    assert dense_sbuf_bytes(deep, 2, plan) >= trace.sbuf_peak_bytes


@pytest.mark.parametrize(
    ("rows", "deep", "columns", "kind"),
    [
        (1024, 7168, 18432, Operand),
        (2048, 7168, 18432, Output),
        (4096, 7168, 18432, Output),
        (8192, 7168, 18432, Operand),
        (4096, 7168, 2048, Output),
        (2048, 4096, 18432, Operand),
    ],
)
def test_dense_baseline_at_the_papers_shapes(rows, deep, columns, kind):
    """Bytes and SBUF as predicted, room for two loads, the tensor engine the busiest."""
    plan = choose_dense(rows, deep, columns)
    trace = simulate(matmul, spec(deep, rows), spec(deep, columns), count_only=True)[1]
    assert isinstance(plan, kind)
    assert dense_hbm_bytes(rows, deep, columns, 2, plan) == trace.hbm_bytes
    assert trace.sbuf_peak_bytes <= dense_sbuf_bytes(deep, 2, plan) <= dense_sbuf_bytes(deep, 2, plan, 2) <= 176 * 1024
    busy = trace.modelled_seconds
    assert max(busy, key=lambda engine: busy[engine]) == "pe"


def test_what_the_text_says_of_unfused_up_gate_and_down():
    """Their bytes over the fused kernels', at ratio 0.05 and S = 2048."""
    ratios = {"up_gate": [], "down": []}
    for chain in mlp_chains(2048):
        ratios[chain.kernel].append(unfused(chain)[0] / sum(hbm_bytes(chain, choose(chain))))
    up_gate, down = ratios.values()
    page = " ".join((Path(__file__).parents[2] / "docs" / "kernels.md").read_text().split())
    assert f"`up_gate` moves {min(up_gate):.1f} to {max(up_gate):.1f} times less than four" in page
    assert f"`down` {min(down):.1f} to {max(down):.1f} times less than two" in page
    assert f"move between {min(down):.2f} (Llama-3.1-8B, tp 1) and {max(down):.2f} times the bytes of `down`" in page


def test_naive_fusion_and_result_strip_compute_the_same_as_numpy():
    rng = np.random.default_rng(1)
    x_t, u, v = (matrix(rng, *shape, np.float32) for shape in ((256, 256), (256, 512), (512, 1024)))
    np.testing.assert_allclose(simulate(naive_fusion, x_t, u, v)[0], x_t.T @ u @ v, atol=2e-2)
    np.testing.assert_allclose(simulate(result_strip_matmul, u, v[:256])[0], u.T @ v[:256], atol=2e-3)
