"""Random factor pairs for the kernel tests, and the derived tolerance."""

import ml_dtypes
import numpy as np
import pytest

from nxdi_svd_plugin.kernels import reference
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.fused_xuv import xuv
from nxdi_svd_plugin.kernels.packing import pack
from nxdi_svd_plugin.kernels.tiling.engines import engine_seconds, matmul_cycles, transpose_cycles
from nxdi_svd_plugin.simulator import TensorSpec, simulate

DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


def matrix(rng, rows, columns, dtype, scale=1.0):
    return (scale * rng.standard_normal((rows, columns))).astype(dtype)


def factors(rng, inputs, rank, outputs, dtype):
    u = matrix(rng, inputs, rank, dtype, inputs**-0.5)
    return u, matrix(rng, rank, outputs, dtype, rank**-0.5)


def run(kernel, x, pairs, seed=0, **options):
    """(output, trace) of the simulated kernel, (truth in float64, plain low-precision result) of numpy."""
    plain = [factor for pair in pairs for factor in pair]
    packed = [factor for u, v in pairs for factor in pack(u, v, kernel)]
    function = {"xuv": xuv, "up_gate": up_gate, "down": down}[kernel]
    y, trace = simulate(function, x, *packed, seed=seed, aws_style=True, **options)
    numpy_function = getattr(reference, kernel)
    arguments = {name: value for name, value in options.items() if name == "transposed_output"}
    truth = numpy_function(x.astype(np.float64), *(factor.astype(np.float64) for factor in plain), **arguments)
    return y, trace, truth, numpy_function(x, *plain, dtype=x.dtype, **arguments)


def assert_close(y, truth, low):
    """At most twice the error of the plain low-precision chain (plus half a unit), as a norm and at worst."""
    eps = np.finfo(np.float32).eps if y.dtype == np.float32 else float(ml_dtypes.finfo(y.dtype).eps)
    y, low = y.astype(np.float64), low.astype(np.float64)
    assert y.shape == truth.shape
    norm = np.linalg.norm(truth)
    assert np.linalg.norm(y - truth) <= 2 * np.linalg.norm(low - truth) + eps * norm / 2
    assert np.abs(y - truth).max() <= 2 * np.abs(low - truth).max() + eps * np.abs(truth).max()


def assert_modelled(chain, plan, trace):
    """The closed form of the model of time is that of the trace."""
    assert matmul_cycles(chain, plan) + transpose_cycles(chain, plan) == trace.pe_cycles
    assert_seconds(engine_seconds(chain, plan), trace)


def assert_seconds(modelled, trace):
    """Engine by engine.

    Both add the same terms in another order: less than a million doubles, each sum off by 2^-53 of itself at most.
    """
    for engine, seconds in modelled.items():
        name = {"tensor": "pe"}.get(engine, engine)
        assert seconds == pytest.approx(trace.modelled_seconds[name], rel=1e6 * 2**-53), name


def count(kernel, tokens, inputs, ranks, outputs, dtype="bf16", **options):
    """Trace of the kernel in count-only mode: shapes alone, no arithmetic."""
    dtype = np.dtype(DTYPES[dtype])
    x = TensorSpec((inputs, tokens) if kernel == "down" else (tokens, inputs), dtype)
    weights = []
    for rank in ranks:
        weights.append(TensorSpec((128, -(-inputs // 128) * rank), dtype))
        weights.append(TensorSpec((128, -(-rank // 128) * outputs), dtype))
    function = {"xuv": xuv, "up_gate": up_gate, "down": down}[kernel]
    return simulate(function, x, *weights, count_only=True, aws_style=True, **options)[1]
