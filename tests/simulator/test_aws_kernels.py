"""AWS's own kernels and tests, unchanged, when their SDK documentation (tag v2.26.1) is at hand.

It is never part of this repository. NXDI_SVD_AWS_SDK is the directory that holds `nki/`, as in a checkout of
aws-neuron/aws-neuron-sdk.
"""

import importlib.util
import os
import sys
import unittest
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from nxdi_svd_plugin.hardware import MODEL_ERROR
from nxdi_svd_plugin.simulator import TensorSpec, as_neuronxcc, simulate
from nxdi_svd_plugin.simulator.front import language as nl

SDK = Path(os.environ.get("NXDI_SVD_AWS_SDK", "/nonexistent")) / "nki"
pytestmark = pytest.mark.skipif(not SDK.is_dir(), reason="NXDI_SVD_AWS_SDK does not name a directory that holds nki/")

TESTS = """
isa_nc_matmul isa_nc_transpose isa_activation isa_tensor_tensor isa_tensor_scalar isa_tensor_copy
isa_reduce isa_memset isa_dma_copy isa_bn_stats isa_iota isa_reciprocal nl_load_store
nl_load_store_indirect nl_load_transpose2d nl_mgrid nl_add nl_broadcast nl_dslice mask spmd_grid
memory_semantics simulate_kernel isa_affine_select isa_tensor_tensor_scan
""".split()


@pytest.fixture
def load(monkeypatch):
    """Imports a file of the SDK with `neuronxcc` being the simulator."""

    def load_file(path):
        monkeypatch.syspath_prepend(str((SDK / path).parent))
        spec = importlib.util.spec_from_file_location("aws_" + Path(path).stem, SDK / path)
        module = importlib.util.module_from_spec(spec)
        with as_neuronxcc():
            spec.loader.exec_module(module)
        return module

    yield load_file
    for name in [name for name in sys.modules if name.startswith("spmd_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", TESTS)
def test_their_tests(load, name):
    module = load(f"test/test_nki_{name}.py")
    # AWS's simulator computes bf16 in fp32 (their known issue); this one rounds: bf16's tolerance for the bf16 result
    close = partial(np.allclose, rtol=2**-8) if name == "isa_activation" else np.allclose
    result = unittest.TestResult()
    with mock.patch("numpy.allclose", close), as_neuronxcc(), np.errstate(over="ignore"):
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    assert result.testsRun
    assert not result.failures + result.errors


@pytest.mark.parametrize("dtype", [np.float32, nl.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "k", "m", "n"),
    [
        ("nki_matmul_basic_", 128, 64, 512),
        ("nki_matmul_tiled_", 256, 256, 1024),
        ("nki_matmul_hoist_load_", 256, 256, 1024),
        ("nki_matmul_block_free_dimension_", 256, 512, 2048),
        ("nki_matmul_fully_optimized_", 1024, 2048, 1024),
    ],
)
def test_matmul_tutorial(load, kernel, k, m, n, dtype):
    module = load("examples/matrix_multiplication/matrix_multiplication_nki_kernels.py")
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((k, m), (k, n)))
    exact = a.astype(np.float64).T @ b.astype(np.float64)
    got = getattr(module, kernel)(a, b).astype(np.float64)
    unit = 2**-8 if dtype == nl.bfloat16 else 2**-20
    assert np.abs(got - exact).max() <= 2 * unit * np.abs(exact).max()


def test_tensor_addition(load):
    module = load("examples/tensor_addition/spmd_tensor_addition_nki_kernels.py")
    a, b = np.random.default_rng(0).random((2, 256, 1024)).astype(np.float16)
    assert np.array_equal(module.nki_tensor_add(a, b), a + b)


def test_transpose2d(load):
    kernel = load("examples/transpose2d/transpose2d_nki_kernels.py").tensor_transpose2D_kernel_
    x = np.arange(5 * 3 * 4, dtype=np.int8).reshape(5, 12)
    assert np.array_equal(kernel(x, (3, 4)), x.reshape(5, 3, 4).transpose(0, 2, 1).reshape(5, 12))


@pytest.mark.parametrize("rows", [128, 250])
def test_rmsnorm(load, rows):
    kernel = load("examples/rmsnorm/rmsnorm_nki_kernels.py").nki_rmsnorm_kernel
    rng = np.random.default_rng(0)
    x, weight = rng.random((rows, 512), np.float32), rng.random(512, np.float32)
    expected = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True)) * weight
    np.testing.assert_allclose(kernel(x, weight), expected, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["nki_layernorm_kernel_v1", "nki_layernorm_kernel_v2"])
@pytest.mark.parametrize("shape", [(256, 1024), (300, 1000)])
def test_layernorm(load, kernel, shape):
    module = load("examples/layernorm/layernorm_nki_kernel.py")
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.random(shape, np.float32), rng.random(shape[1], np.float32), rng.random(shape[1], np.float32)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(getattr(module, kernel)(x, 1e-5, gamma, beta), expected, rtol=1e-3, atol=1e-4)


def test_average_pool2d(load):
    module = load("examples/average_pool2d/average_pool2d_nki_kernels.py")
    x = np.arange(2 * 6 * 6, dtype=np.float16).reshape(2, 6, 6)
    assert np.array_equal(module.tensor_avgpool_kernel(x, 2), module.np_average_pool_2D(x, 2))


@pytest.mark.parametrize(
    ("kernel", "gib_read"),
    [
        ("nki_matmul_tiled_", 5.0),
        ("nki_matmul_hoist_load_", 4.0625),
        ("nki_matmul_block_free_dimension_", 2.0625),
        ("nki_matmul_fully_optimized_", 0.625),
    ],
)
def test_matmul_tutorial_traffic_at_full_size(load, kernel, gib_read):
    """[4096, 8192] x [8192, 8192] in bf16: the bytes of the loop nests; AWS profiled 640 and 64 MiB for the last."""
    module = load("examples/matrix_multiplication/matrix_multiplication_nki_kernels.py")
    specs = [TensorSpec(shape, nl.bfloat16) for shape in ((8192, 4096), (8192, 8192))]
    _, trace = simulate(getattr(module, kernel), *specs, count_only=True, strict=False)
    assert trace.hbm_read_bytes - trace.spill_reload_bytes == gib_read * 2**30
    assert trace.hbm_write_bytes - trace.spill_save_bytes == 64 * 2**20
    assert trace.matmul_flops == 2 * 4096 * 8192 * 8192


def test_the_measured_latency_of_the_tuned_matmul_lies_in_the_band_of_the_model(load):
    """6.97 ms on a trn1.32xlarge, by the tutorial's page; no constant of the model was fitted on it."""
    kernel = load("examples/matrix_multiplication/matrix_multiplication_nki_kernels.py").nki_matmul_fully_optimized_
    specs = [TensorSpec(shape, nl.bfloat16) for shape in ((8192, 4096), (8192, 8192))]
    _, trace = simulate(kernel, *specs, count_only=True, strict=False)
    assert trace.modelled_seconds["pe"] * 1e3 == pytest.approx(6.83, abs=0.01)
    assert trace.modelled_latency_us / 1e3 == pytest.approx(7.86, abs=0.01)
    assert MODEL_ERROR[0] <= 6970 / trace.modelled_latency_us - 1 <= MODEL_ERROR[1]


def test_matmul_tutorial_spills_for_many_rows(load):
    module = load("examples/matrix_multiplication/matrix_multiplication_nki_kernels.py")
    kernel, spills = module.nki_matmul_fully_optimized_, {}
    for rows in (4096, 32768):
        specs = [TensorSpec(shape, nl.bfloat16) for shape in ((8192, rows), (8192, 8192))]
        spills[rows] = simulate(kernel, *specs, count_only=True, strict=False)[1].spill_save_bytes
    assert spills[4096] == 0
    assert spills[32768] > 0
