"""The kernels of the paper's authors (dinghongsong/NeuronMM at f13583f) beside ours, at the same shapes.

Theirs are read from a checkout, run and never copied: NXDI_SVD_NEURONMM is the directory that holds `models/`. Both are
printed (`pytest -s`); docs/kernels.md says what the difference is made of.
"""

import ast
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import DTYPES, count, factors, matrix, run

from nxdi_svd_plugin.kernels import reference
from nxdi_svd_plugin.simulator import TensorSpec, as_neuronxcc, simulate

SOURCE = Path(os.environ.get("NXDI_SVD_NEURONMM", "/nonexistent")) / "models" / "llama" / "modeling_llama.py"
pytestmark = pytest.mark.skipif(
    not SOURCE.is_file(), reason="NXDI_SVD_NEURONMM does not name a directory that holds models/llama/modeling_llama.py"
)
KERNELS = {"load_tensor_block", "load_tensor_block_T", "fused_three_mm_XTUV", "fused_mlp_up_T"}
SHAPES = {"llama-1b": (8192, 1536, 2048), "qwen3-1.7b": (6144, 1408, 2048)}  # I, r, H


@pytest.fixture(scope="module")
def theirs():
    """Their kernels alone: the file around them needs all of NxDI."""
    tree = ast.parse(SOURCE.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in KERNELS]
    with as_neuronxcc():
        import neuronxcc.nki as nki
        import neuronxcc.nki.isa as nisa
        import neuronxcc.nki.language as nl

        names = {"nki": nki, "nisa": nisa, "nl": nl, "par_dim": nl.par_dim, "np": np, "Tuple": tuple}
        exec(compile(tree, str(SOURCE), "exec"), names)  # noqa: S102 (a checkout that the caller names)
    return names


def least(theirs, tokens, inputs, rank, outputs):
    """Their `down` with the best of some block parameters, without spills: (trace, parameters)."""
    dtype, ranks = np.dtype(DTYPES["bf16"]), rank // 128
    shapes = [TensorSpec(shape, dtype) for shape in ((inputs, tokens), (inputs, rank), (rank, outputs))]
    found = []
    for r, k, m in product([ranks], (8, 16), (4,)):
        blocks = {"r_tiles_in_block": r, "K_tiles_in_block": k, "N_tiles_in_block": 2, "M_tiles_in_block": m}
        trace = simulate(theirs["fused_three_mm_XTUV"], *shapes, count_only=True, strict=False, **blocks)[1]
        if not trace.spill_save_bytes:
            found.append((trace.hbm_bytes, trace.modelled_latency_us, str(blocks), trace))
    assert found
    return min(found)[3], min(found)[2]


@pytest.mark.parametrize("model", SHAPES)
def test_down_moves_no_more_than_theirs(theirs, model):
    inputs, rank, outputs = SHAPES[model]
    best, blocks = least(theirs, 2048, inputs, rank, outputs)
    ours = count("down", 2048, inputs, (rank,), outputs)
    for name, trace in ((f"NeuronMM {blocks}", best), ("ours", ours)):
        print(
            f"{model} down, S=2048: {trace.hbm_bytes / 1e6:.1f} MB, {trace.modelled_latency_us:.0f} us modelled, "
            f"mean DMA run {trace.mean_dma_run_bytes:.0f} B, SBUF {trace.sbuf_peak_bytes / 1024:.0f} KiB  ({name})"
        )
    assert ours.hbm_bytes <= best.hbm_bytes
    assert ours.modelled_latency_us <= 1.005 * best.modelled_latency_us
    assert ours.mean_dma_run_bytes >= best.mean_dma_run_bytes


def test_down_is_no_less_exact_than_theirs(theirs):
    """Their sums of T are bf16, ours fp32."""
    rng, dtype = np.random.default_rng(0), DTYPES["bf16"]
    h_t, (u, v) = matrix(rng, 4096, 256, dtype), factors(rng, 4096, 256, 512, dtype)
    blocks = {"r_tiles_in_block": 2, "K_tiles_in_block": 2, "N_tiles_in_block": 1, "M_tiles_in_block": 2}
    made = simulate(theirs["fused_three_mm_XTUV"], h_t, u, v, strict=False, **blocks)[0]
    ours = run("down", h_t, [(u, v)], strip=(256,), split=2)[0]
    truth = reference.down(*(a.astype(np.float64) for a in (h_t, u, v)))
    errors = [np.linalg.norm(y.astype(np.float64) - truth) / np.linalg.norm(truth) for y in (made, ours)]
    print(f"relative error, 16 blocks of the contraction: NeuronMM {errors[0]:.2%}, ours {errors[1]:.2%}")
    assert errors[1] <= errors[0]
