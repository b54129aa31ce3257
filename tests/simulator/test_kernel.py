"""Whole kernels: results against numpy float64, counters against hand-computed values, count-only against full mode."""

import numpy as np
import pytest

from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki


@nki.jit
def matmul(lhs_t, rhs):
    k, m = lhs_t.shape
    _, n = rhs.shape
    out = nl.ndarray((m, n), dtype=lhs_t.dtype, buffer=nl.shared_hbm)
    for i in nl.affine_range(m // 128):
        for j in nl.affine_range(n // 512):
            acc = nl.zeros((128, 512), nl.float32, buffer=nl.psum)
            for h in nl.affine_range(k // 128):
                a = nl.load(lhs_t[nl.ds(h * 128, 128), nl.ds(i * 128, 128)])
                b = nl.load(rhs[h * 128 : (h + 1) * 128, j * 512 : (j + 1) * 512])
                acc += nisa.nc_matmul(a, b)
            nl.store(out[nl.ds(i * 128, 128), nl.ds(j * 512, 512)], nl.copy(acc, dtype=out.dtype))
    return out


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [nl.bfloat16, np.float16, np.float32])
def test_matmul_matches_float64_within_one_output_rounding(dtype):
    a, b = normal((384, 256), dtype), normal((384, 512), dtype, seed=1)
    out, _ = simulate(matmul, a, b)
    exact = a.astype(np.float64).T @ b.astype(np.float64)
    rounded_once = exact.astype(dtype).astype(np.float64)
    floor = 384 * np.finfo(np.float32).eps * np.abs(a.astype(np.float64)).T @ np.abs(b.astype(np.float64))
    assert out.dtype == dtype
    assert np.all(np.abs(out.astype(np.float64) - exact) <= 2 * np.abs(rounded_once - exact).max() + floor)


def test_matmul_counters_by_hand():
    a, b = normal((256, 256), nl.bfloat16), normal((256, 1024), nl.bfloat16, seed=1)
    _, trace = simulate(matmul, a, b)
    tiles, steps = 2 * 2, 2
    assert trace.hbm_read_bytes == tiles * steps * (128 * 128 + 128 * 512) * 2
    assert trace.hbm_write_bytes == 256 * 1024 * 2
    assert trace.dma_count == tiles * steps * 2 + tiles
    assert trace.dma_runs == {256: tiles * steps * 128, 1024: tiles * steps * 128 + tiles * 128}
    assert trace.matmul_flops == 2 * 256 * 256 * 1024
    assert trace.transpose_flops == 0
    assert trace.pe_cycles == tiles * steps * 512
    assert trace.scalar_cycles == tiles * 512  # one PSUM eviction per tile; the zero fill is free
    assert trace.sbuf_peak_bytes == (128 + 512) * 2
    assert trace.sbuf_prefetch_peak_bytes == 2 * trace.sbuf_peak_bytes
    assert trace.psum_peak_banks == 1


def test_fp32_matmul_takes_four_passes():
    bf16 = simulate(matmul, normal((128, 128), nl.bfloat16), normal((128, 512), nl.bfloat16))[1]
    fp32 = simulate(matmul, normal((128, 128)), normal((128, 512)))[1]
    assert fp32.pe_cycles == 4 * bf16.pe_cycles


def test_count_only_equals_full_mode_and_needs_no_data():
    a, b = normal((256, 256), nl.bfloat16), normal((256, 512), nl.bfloat16)
    _, full = simulate(matmul, a, b)
    out, counted = simulate(matmul, TensorSpec(a.shape, a.dtype), TensorSpec(b.shape, b.dtype), count_only=True)
    assert counted == full
    assert (out.shape, out.dtype) == ((256, 512), nl.bfloat16)


def test_a_list_may_hold_tensors():
    """Since SDK 2.25 (aws-neuron-sdk v2.25.0, release-notes/2.25.0/nki.rst)."""

    @nki.jit
    def total(tensors):
        out = nl.ndarray(tensors[0].shape, dtype=nl.float32, buffer=nl.shared_hbm)
        tile = nl.load(tensors[0])
        for tensor in tensors[1:]:
            tile = nl.add(tile, nl.load(tensor))
        nl.store(out, value=tile)
        return out

    tensors = [normal((128, 64)) for _ in range(3)]
    out, trace = simulate(total, tensors)
    np.testing.assert_allclose(out, sum(tensors), rtol=1e-6)
    assert trace.hbm_read_bytes == 3 * tensors[0].nbytes
