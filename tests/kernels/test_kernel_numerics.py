"""Every kernel against numpy float64; the tolerance is twice the error of the same chain in plain low precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, assert_close, factors, matrix, run

from nxdi_svd_plugin.errors import KernelError, SimulatorError
from nxdi_svd_plugin.kernels.fused_xuv import xuv
from nxdi_svd_plugin.kernels.packing import pack
from nxdi_svd_plugin.simulator import simulate

SHAPES = [  # tokens, inputs, rank, outputs
    (1, 576, 384, 1536),  # SmolLM2, one token
    (8, 256, 128, 384),
    (5, 640, 256, 1024),
    (128, 128, 128, 128),
    (130, 384, 256, 512),
    (300, 576, 200, 700),  # nothing a multiple of 128
    (1000, 256, 128, 640),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_xuv(shape, dtype, transposed):
    tokens, inputs, rank, outputs = shape
    rng = np.random.default_rng(1)
    x = matrix(rng, tokens, inputs, DTYPES[dtype])
    pair = factors(rng, inputs, rank, outputs, DTYPES[dtype])
    y, _, truth, low = run("xuv", x, [pair], transposed_output=transposed)
    assert_close(y, truth, low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_up_gate(shape, dtype):
    tokens, inputs, rank, outputs = shape
    rng = np.random.default_rng(2)
    x = matrix(rng, tokens, inputs, DTYPES[dtype])
    gate = factors(rng, inputs, rank, outputs, DTYPES[dtype])
    up = factors(rng, inputs, rank + 128, outputs, DTYPES[dtype])  # ranks may differ
    y, _, truth, low = run("up_gate", x, [gate, up])
    assert_close(y, truth, low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_down(shape, dtype):
    tokens, outputs, rank, inputs = shape
    rng = np.random.default_rng(3)
    h_t = matrix(rng, inputs, tokens, DTYPES[dtype])
    y, _, truth, low = run("down", h_t, [factors(rng, inputs, rank, outputs, DTYPES[dtype])])
    assert_close(y, truth, low)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 290),
    inputs=st.integers(1, 400),
    rank=st.integers(1, 300),
    outputs=st.integers(1, 700),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 99),
)
def test_odd_shapes(tokens, inputs, rank, outputs, dtype, seed):
    rng = np.random.default_rng(seed)
    x = matrix(rng, tokens, inputs, DTYPES[dtype])
    gate, up = (factors(rng, inputs, rank, outputs, DTYPES[dtype]) for _ in range(2))
    h_t, _, truth, low = run("up_gate", x, [gate, up], seed=seed)
    assert_close(h_t, truth, low)
    y, _, truth, low = run("down", h_t, [factors(rng, outputs, rank, inputs, DTYPES[dtype])], seed=seed)
    assert_close(y, truth, low)
    y, _, truth, low = run("xuv", x, [gate], seed=seed, transposed_output=bool(seed % 2))
    assert_close(y, truth, low)


@pytest.mark.parametrize("strip", [(64,), (128, 64), (300,), (100, 50, 30)])
@pytest.mark.parametrize("kernel", ["xuv", "up_gate", "down"])
def test_many_strips_and_every_order_of_the_loops(kernel, strip):
    """A dependency between iterations of an affine loop would show as a result that changes with the seed."""
    rng = np.random.default_rng(4)
    tokens, inputs, rank, outputs = 700, 256, 256, 384
    shape = (inputs, tokens) if kernel == "down" else (tokens, inputs)
    pairs = [factors(rng, inputs, rank, outputs, np.float32) for _ in range(2 if kernel == "up_gate" else 1)]
    results = [
        run(kernel, matrix(np.random.default_rng(5), *shape, np.float32), pairs, seed=s, strip=strip) for s in range(4)
    ]
    for y, _, truth, low in results:
        assert_close(y, truth, low)


def test_plain_factors_are_refused_with_the_remedy():
    rng = np.random.default_rng(6)
    u, v = factors(rng, 256, 200, 384, np.float32)
    with pytest.raises(KernelError, match=r"not a packed factor.*kernels.pack"):
        simulate(xuv, matrix(rng, 4, 256, np.float32), u, v)


def test_mixed_and_unsupported_dtypes_are_refused():
    rng = np.random.default_rng(7)
    packed = pack(*factors(rng, 256, 128, 384, np.float16))
    with pytest.raises(KernelError, match="must have the input's"):
        simulate(xuv, matrix(rng, 4, 256, np.float32), *packed)
    with pytest.raises(KernelError, match="not supported"):
        simulate(xuv, np.zeros((4, 256), np.int8), *packed)


def test_a_batched_input_is_refused():
    rng = np.random.default_rng(8)
    with pytest.raises(KernelError, match="flatten"):
        simulate(xuv, np.zeros((2, 4, 256), np.float32), *pack(*factors(rng, 256, 128, 384, np.float32)))


def test_a_strip_that_does_not_fit_is_refused_by_the_simulator():
    rng = np.random.default_rng(9)
    x = matrix(rng, 2048, 4096, np.float32)
    with pytest.raises(SimulatorError, match="SBUF"):
        simulate(xuv, x, *pack(*factors(rng, 4096, 128, 128, np.float32)), strip=(2048,))
