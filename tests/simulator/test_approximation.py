"""Activations that are off by a relative error, as on a device, and what that does to the logits of a small model."""

import ml_dtypes
import numpy as np
import pytest

from nxdi_svd_plugin.hardware import ACTIVATION_ERROR
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.packing import pack
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki


def applied(function, x, **options):
    def kernel(x):
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nisa.activation(function, nl.load(x)))
        return out

    return simulate(nki.jit(kernel), x, **options)[0].astype(np.float64)


@pytest.mark.parametrize("function", [nl.silu, nl.exp, nl.rsqrt, "sigmoid"])
def test_the_error_is_uniform_within_the_bound_and_seeded(function):
    x = np.random.default_rng(0).uniform(0.5, 3, (128, 500)).astype(np.float32)
    exact = applied(function, x)
    first, again, other = (applied(function, x, approximation=ACTIVATION_ERROR, seed=seed) for seed in (1, 1, 2))
    errors = first / exact - 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(errors).max() <= ACTIVATION_ERROR * (1 + 1e-4)  # and the rounding of both to fp32
    # 64000 draws: mean within 5 sigma of 0, spread within 2 % of a uniform distribution's
    assert abs(errors.mean()) <= 5 * ACTIVATION_ERROR / np.sqrt(3 * errors.size)
    assert errors.std() == pytest.approx(ACTIVATION_ERROR / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("function", [nl.copy, nl.square, "relu"])
def test_functions_without_approximation_stay_exact(function):
    x = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    assert np.array_equal(applied(function, x, approximation=ACTIVATION_ERROR), applied(function, x))


def test_the_order_of_iterations_does_not_depend_on_the_option():
    def kernel(x):
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        total = nl.zeros((128, 1), nl.float32)
        for i in nl.affine_range(8):  # a planted dependency: the result shows the order
            total += nl.load(x[:, nl.ds(i, 1)])
            nl.store(out[:, nl.ds(i, 1)], total)
        return out

    x = np.round(np.random.default_rng(0).standard_normal((128, 8)) * 64).astype(np.float32)
    plain, noisy = (simulate(nki.jit(kernel), x, seed=3, approximation=a)[0] for a in (0.0, ACTIVATION_ERROR))
    assert np.array_equal(plain, noisy)


# ---- a model: embeddings, two blocks of norm and low-rank MLP, norm and head; odd shapes
TOKENS, HIDDEN, INNER, RANK, VOCABULARY, LAYERS = 37, 200, 300, 70, 61, 2


def model():
    rng = np.random.default_rng(0)

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) * rows**-0.5).astype(ml_dtypes.bfloat16)

    layers = [
        [(matrix(a, RANK), matrix(RANK, b)) for a, b in ((HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN))]
        for _ in range(LAYERS)
    ]
    return rng.standard_normal((TOKENS, HIDDEN)), layers, matrix(HIDDEN, VOCABULARY).astype(np.float64)


def normed(x):
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))


def logits(mlp):
    """Of the model, its MLPs computed by `mlp(x, gate, up, down, number of the layer)`; everything else in float64."""
    x, layers, head = model()
    for number, factors in enumerate(layers):
        x = x + mlp(normed(x), *factors, number)
    return normed(x) @ head


def through_the_kernels(approximation, dtype=ml_dtypes.bfloat16):
    def mlp(x, gate, up, lower, number):
        options = {"approximation": approximation, "seed": number}
        gate, up, lower = ([factor.astype(dtype) for factor in pair] for pair in (gate, up, lower))
        h_t, _ = simulate(up_gate, x.astype(dtype), *pack(*gate, "up_gate"), *pack(*up, "up_gate"), **options)
        return simulate(down, h_t, *pack(*lower, "down"), **options)[0].astype(np.float64)

    return logits(mlp)


def in_float64(error=0.0):
    rng = np.random.default_rng(7)

    def mlp(x, gate, up, lower, _):
        gate, up, lower = ([factor.astype(np.float64) for factor in pair] for pair in (gate, up, lower))
        a = x @ gate[0] @ gate[1]
        silu = a / (1 + np.exp(-a)) * (1 + rng.uniform(-error, error, a.shape))
        return silu * (x @ up[0] @ up[1]) @ lower[0] @ lower[1]

    return logits(mlp)


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def test_what_an_error_of_silu_does_to_the_logits_without_rounding():
    """In fp32 the same error put into numpy's SiLU moves the logits as far: the spread of 2257 of them, within 10 %."""
    exact, noisy = (through_the_kernels(approximation, np.float32) for approximation in (0.0, ACTIVATION_ERROR))
    predicted = rms(in_float64(ACTIVATION_ERROR) - in_float64())
    assert rms(exact - in_float64()) < 1e-3 * predicted
    assert rms(noisy - exact) == pytest.approx(predicted, rel=0.1)
    assert predicted < 2**-9 * rms(exact)  # half a unit of bf16


def test_what_an_error_of_silu_does_to_the_logits_beside_bf16():
    truth = in_float64()
    exact, noisy = (through_the_kernels(approximation) - truth for approximation in (0.0, ACTIVATION_ERROR))
    predicted = rms(in_float64(ACTIVATION_ERROR) - truth)
    # independent errors add as squares, and bf16 itself (x, T, h, T and y are rounded) is the larger part
    assert rms(noisy) == pytest.approx(np.hypot(rms(exact), predicted), rel=0.1)
    assert predicted < rms(exact)
    # the likeliest token changes only where two logits are closer than they moved
    top = np.sort(truth, axis=1)
    near = top[:, -1] - top[:, -2] < 2 * np.abs(noisy).max(axis=1)
    assert ((truth + noisy).argmax(1) == truth.argmax(1))[~near].all()
    assert near.mean() < 0.1
