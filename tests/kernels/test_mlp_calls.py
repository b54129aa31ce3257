"""The calls of an unfused MLP compute the MLP: the same kernels on arrays, shape by shape, against numpy float64."""

import numpy as np
import pytest
from kernel_cases import DTYPES, assert_close, factors, matrix

from nxdi_svd_plugin import kernels
from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels import reference
from nxdi_svd_plugin.kernels.measure.calls import DENSE, Share, dense_mlp, unfused_down, unfused_up_gate
from nxdi_svd_plugin.kernels.packing import pack, packed_shapes
from nxdi_svd_plugin.simulator import simulate

SIZES = [(1, 130, 384), (77, 200, 300), (130, 128, 256), (2100, 128, 256)]  # tokens, hidden, intermediate


def runner(calls):
    """run(kernel, *arrays): the result, once kernel and shapes are found to be those of the next call."""
    left = list(calls)

    def run(kernel, *arrays):
        call = left.pop(0)
        assert (call.kernel, call.shapes) == (kernel, tuple(array.shape for array in arrays))
        return simulate(getattr(kernels, kernel), *arrays)[0]

    return run, left


def low_matmul(a, b):
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dense(size):
    tokens, hidden, inner = size
    rng, dtype = np.random.default_rng(0), DTYPES["bf16"]
    x = matrix(rng, tokens, hidden, dtype)
    gate, up, down = (matrix(rng, a, b, dtype, a**-0.5) for a, b in [(hidden, inner)] * 2 + [(inner, hidden)])
    run, left = runner(dense_mlp(tokens, hidden, inner))
    x_t = np.ascontiguousarray(x.T)
    y = run("matmul", run("swiglu", run("matmul", gate, x_t), run("matmul", up, x_t)), down)
    assert left == []

    def chain(matmul, round_to, x, gate, up, down):
        hidden = reference.silu(matmul(x, gate).astype(np.float64)).astype(round_to) * matmul(x, up)
        return matmul(hidden.astype(round_to), down)

    exact = [array.astype(np.float64) for array in (x, gate, up, down)]
    assert_close(y, chain(np.matmul, np.float64, *exact), chain(low_matmul, dtype, x, gate, up, down))


@pytest.mark.parametrize("pivots", [0, 64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_low_rank(size, pivots):
    """Pairs, and interpolative factors V = [I | C], U = [I ; C] with all of the rank (64) as pivots."""
    tokens, hidden, inner = size
    rng, dtype, rank, made = np.random.default_rng(1), DTYPES["bf16"], 64, inner - pivots
    x = matrix(rng, tokens, hidden, dtype)
    (u_gate, v_gate), (u_up, v_up) = (factors(rng, hidden, rank, made, dtype) for _ in range(2))
    u_down, v_down = factors(rng, made, rank, hidden, dtype)
    form = Share(rank, pivots)
    calls = [*unfused_up_gate(tokens, hidden, inner, form, form), *unfused_down(tokens, hidden, inner, form)]
    run, left = runner(calls)
    x_t = np.ascontiguousarray(x.T)

    def upwards(u, v):
        z = run("matmul", u, x_t)
        return np.concatenate([z[:pivots], run("matmul", v, z)])

    h_t = run("swiglu", upwards(u_gate, v_gate), upwards(u_up, v_up))
    t = run("matmul", u_down, h_t[pivots:])
    t = run("add", t, h_t[:pivots]) if pivots else t
    y = run("matmul", t, v_down)
    assert left == []
    block = np.eye(rank, dtype=dtype)[:, :pivots]
    plain = [u_gate, np.concatenate([block, v_gate], 1), u_up, np.concatenate([block, v_up], 1)]
    plain += [np.concatenate([block.T, u_down]), v_down]

    def chain(dtype, x, *weights):
        return reference.down(reference.up_gate(x, *weights[:4], dtype=dtype), *weights[4:], dtype=dtype)

    exact = [array.astype(np.float64) for array in (x, *plain)]
    assert_close(y, chain(None, *exact), chain(dtype, x, *plain))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (128, 2048), (200, 2049)], ids=str)
def test_passes(shape, dtype):
    """Each rounds once: half a unit in the last place of the truth (SiLU of fp32 costs a little more)."""
    rng = np.random.default_rng(2)
    a, b = (matrix(rng, *shape, DTYPES[dtype]) for _ in range(2))
    exact = a.astype(np.float64), b.astype(np.float64)
    for kernel, truth in ((kernels.add, exact[0] + exact[1]), (kernels.swiglu, reference.silu(exact[0]) * exact[1])):
        y, trace = simulate(kernel, a, b)
        low = truth.astype(np.float32).astype(DTYPES[dtype])
        assert_close(y, truth, low)
        assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == (a.nbytes + b.nbytes, a.nbytes)


def test_passes_refuse_unequal_tensors():
    with pytest.raises(KernelError, match="one shape"):
        simulate(kernels.add, np.zeros((4, 4), np.float32), np.zeros((4, 5), np.float32))


@pytest.mark.parametrize("kernel", ["xuv", "up_gate", "down"])
def test_packed_shapes_are_those_of_pack(kernel):
    u, v = factors(np.random.default_rng(3), 200, 130, 384, np.float32)
    assert packed_shapes(200, 130, 384) == tuple(each.shape for each in pack(u, v, kernel))


def test_a_dense_projection_is_one_matmul():
    assert [str(call) for call in unfused_down(8, 44, 90, DENSE)] == ["matmul 90x8 90x44"]
