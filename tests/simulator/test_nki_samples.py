"""Kernels of aws-neuron/nki-samples at commit 0898a77, unchanged, when a checkout is at hand; never part of this one.

NXDI_SVD_NKI_SAMPLES is the checkout. Kernels that place their tensors themselves (`nki.compiler.sbuf`: allocated_*,
pipelined_attention, attention_fwd_performance) stop with an error that names it.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import as_neuronxcc, simulate

SAMPLES = Path(os.environ.get("NXDI_SVD_NKI_SAMPLES", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not (SAMPLES / "contributed").is_dir(), reason="NXDI_SVD_NKI_SAMPLES does not name a checkout of nki-samples"
)


@pytest.fixture
def load(monkeypatch):
    """Imports a file of nki-samples with `neuronxcc` being the simulator."""
    monkeypatch.syspath_prepend(str(SAMPLES / "src"))
    before = set(sys.modules)

    def load_file(path):
        spec = importlib.util.spec_from_file_location("samples_" + Path(path).stem, SAMPLES / path)
        module = importlib.util.module_from_spec(spec)
        with as_neuronxcc():
            spec.loader.exec_module(module)
        return module

    yield load_file
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "nki_samples":
            del sys.modules[name]


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention(load, causal):
    module = load("src/nki_samples/reference/attention.py")
    rng, seq, d = np.random.default_rng(0), 512, 64
    q, k = (rng.standard_normal((1, 1, d, seq)).astype(np.float32) for _ in range(2))
    v = rng.standard_normal((1, 1, seq, d)).astype(np.float32)
    config = module.FlashConfig(seq_tile_size=512, training=False, should_transpose_v=False)
    with as_neuronxcc():
        out = module.flash_fwd[1, 1](q, k, v, None, use_causal_mask=causal, mixed_precision=True, config=config)
    scores = q[0, 0].astype(np.float64).T @ k[0, 0] / np.sqrt(d)
    scores = np.where(np.tri(seq) > 0, scores, -np.inf) if causal else scores
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    # weights and v are rounded to bf16 (2^-9 each), the sum to bf16 at most once more
    bound = 3 * 2**-9 * (weights @ np.abs(v[0, 0])) + 2**-8 * np.abs(weights @ v[0, 0])
    assert (np.abs(np.asarray(out, np.float64)[0, 0] - weights @ v[0, 0]) <= bound + 1e-6).all()


@pytest.mark.parametrize("version", ["mamba_v1", "mamba_v2", "mamba_v3"])
def test_mamba(load, version):
    kernel = getattr(load("src/nki_samples/tutorials/fused_mamba/mamba_nki_kernels.py"), version)
    rng, channels, seq, states = np.random.default_rng(0), 128, 512, 3
    delta, u = rng.random((2, 1, channels, seq), np.float32) / 8
    a = -rng.random((channels, states), np.float32)
    b, c = rng.random((2, 1, states, seq), np.float32)
    state, expected = np.zeros((channels, states)), np.zeros((channels, seq))
    for i in range(seq):
        state = np.exp(delta[0, :, i, None] * a) * state + delta[0, :, i, None] * b[0, :, i] * u[0, :, i, None]
        expected[:, i] = (state * c[0, :, i]).sum(1)
    np.testing.assert_allclose(kernel(delta, u, a, b, c)[0], expected, rtol=1e-4, atol=1e-5)


def test_contributed_matmul(load):
    kernel = load("contributed/matmul.py").matmul
    rng = np.random.default_rng(0)
    a, b = np.round(rng.standard_normal((1024, 512)) * 8), np.round(rng.standard_normal((1024, 1024)) * 8)
    a, b = a.astype(np.float32), b.astype(np.float32)
    tiles = {"TILES_IN_BLOCK_K": 4, "TILES_IN_BLOCK_M": 2, "TILES_IN_BLOCK_N": 1}
    out, trace = simulate(kernel, a, b, strict=False, **tiles)
    np.testing.assert_array_equal(out, a.T @ b)  # integers below 2^24: every order of summation is exact
    assert trace.hbm_write_bytes == out.nbytes


def test_sd_attention(load):
    module = load("src/nki_samples/tutorials/sd_attention/sd_attention_nki_kernels.py")
    rng, seq, d = np.random.default_rng(0), 512, 64
    q, k, v = (rng.standard_normal((seq, d)).astype(np.float32) for _ in range(3))
    out = module.fused_self_attn_for_SD_small_head_size(q, k, v, use_causal_mask=True)
    scores = np.where(np.tri(seq) > 0, q.astype(np.float64) @ k.T * 0.125, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    bound = 4 * 2**-9 * (weights @ np.abs(v)) + 2**-8 * np.abs(weights @ v)
    assert (np.abs(out - weights @ v) <= bound + 1e-6).all()


def test_adaptive_average_pool(load):
    kernel = load("src/nki_samples/reference/vision.py").adaptive_avg_pool2d_kernel
    x = np.random.default_rng(0).random((2, 16, 12, 9), np.float32)
    with as_neuronxcc():
        out = kernel(x, (4, 3))
    np.testing.assert_allclose(out, x.reshape(2, 16, 4, 3, 3, 3).mean((3, 5)), rtol=1e-5)


def test_resize_to_the_nearest(load):
    kernel = load("src/nki_samples/reference/vision.py").resize_nearest_fixed_dma_kernel
    x = np.random.default_rng(0).random((2, 9, 7, 24), np.float32)
    with as_neuronxcc():
        out = kernel(x, (2, 14, 13, 24))
    rows, columns = (np.arange(made) * given // made for made, given in ((14, 9), (13, 7)))
    np.testing.assert_array_equal(out, x[:, rows][:, :, columns])


def doubled(x, axis):
    """Half-pixel centres: every neighbour weighs a quarter, the edges repeat."""
    x = np.moveaxis(x, axis, -1)
    before, after = x[..., [0, *range(x.shape[-1] - 1)]], x[..., [*range(1, x.shape[-1]), -1]]
    made = np.stack([(before + 3 * x) / 4, (3 * x + after) / 4], axis=-1)
    return np.moveaxis(made.reshape(*x.shape[:-1], -1), -1, axis)


def test_interpolate_bilinear(load):
    kernel = load("contributed/interpolate_bilinear_fwd.py").interpolate_bilinear_2x_fwd
    x = np.random.default_rng(0).random((1, 128, 16, 16), np.float32)
    with as_neuronxcc():
        out = kernel(x, 8)

    np.testing.assert_allclose(out.reshape(1, 128, 32, 32), doubled(doubled(x.astype(np.float64), 2), 3), rtol=1e-5)


def test_interpolate_trilinear(load, monkeypatch):
    """Six free axes in one instruction: lenient runs warn, strict ones refuse (test_limits.py)."""
    for name in ("torch_xla", "torch_xla.core", "torch_xla.core.xla_model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    kernel = load("contributed/interpolate_trilinear_fwd.py").interpolate_trilinear_2x_fwd
    x = np.random.default_rng(0).random((1, 130, 5, 4, 6), np.float32)
    out, trace = simulate(kernel, x, strict=False)
    expected = doubled(doubled(doubled(x.astype(np.float64), 2), 3), 4)
    np.testing.assert_allclose(out.reshape(expected.shape), expected, rtol=1e-5)
    assert any("6 free axes" in warning for warning in trace.warnings)


def test_max_pooling(load):
    kernel = load("contributed/maxpooling.py").max_pooling_2d_stride_1
    x = np.random.default_rng(0).random((200, 75), np.float32)
    out = simulate(kernel, x, 3, strict=False)[0]
    np.testing.assert_array_equal(out, np.lib.stride_tricks.sliding_window_view(x, (3, 3)).max((2, 3)))


def test_flash_attention_backward(load):
    kernel = load("src/nki_samples/reference/attention.py").flash_attn_bwd
    rng, seq, d = np.random.default_rng(0), 512, 64
    q, k, v, dy = (rng.uniform(-1, 1, (1, 1, d, seq)).astype(np.float32) for _ in range(4))
    q64, k64, v64, dy64 = (a[0, 0].T.astype(np.float64) for a in (q, k, v, dy))
    scores = np.where(np.tri(seq) > 0, q64 @ k64.T / np.sqrt(d), -np.inf)
    lse = np.log(np.exp(scores).sum(1))
    p = np.exp(scores - lse[:, None])
    o = p @ v64
    ds = p * (dy64 @ v64.T - (dy64 * o).sum(1, keepdims=True)) / np.sqrt(d)
    with as_neuronxcc():
        given = (o.T[None, None].astype(np.float32), dy, lse.reshape(seq // 128, 128).T[None, None].astype(np.float32))
        got = kernel[1, 1](q, k, v, *given, None, use_causal_mask=True, mixed_precision=True)
    for mine, exact in zip(got, (ds @ k64, ds.T @ q64, p.T @ dy64), strict=True):
        # AWS's own test allows 1e-2 for values of this size
        np.testing.assert_allclose(mine[0, 0].T, exact, atol=1e-2)


@pytest.mark.parametrize("path", ["contributed/pipelined_attention.py"])
def test_direct_allocation_is_named(load, path):
    with pytest.raises(SimulatorError, match=r"nki.compiler.sbuf is not simulated"):
        load(path)
