"""What people write who know numpy better than the device: right where NKI takes it, one sentence where it does not."""

import math

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki

REALS = np.random.default_rng(0).standard_normal((37, 75)).astype(np.float32)
INTEGERS = np.random.default_rng(1).integers(-1000, 1000, (37, 75)).astype(np.int32)
NATURALS = np.abs(INTEGERS).astype(np.uint32)


def run(make, x, columns=None, dtype=None, strict=True):
    """The result of a kernel that loads x whole, applies `make` to the tile and stores what that gives."""

    def kernel(x):
        out = nl.ndarray((x.shape[0], columns or x.shape[1]), dtype or x.dtype, buffer=nl.shared_hbm)
        nl.store(out, make(nl.load(x)))
        return out

    return simulate(nki.jit(kernel), x, strict=strict)[0]


@pytest.mark.parametrize(
    ("make", "x", "expected"),
    [
        (
            lambda t: nisa.tensor_scalar(t, np.bitwise_and, 7, op1=nl.left_shift, operand1=2),
            INTEGERS,
            (INTEGERS & 7) << 2,
        ),
        (lambda t: nisa.tensor_scalar(t, nl.right_shift, 3), NATURALS, NATURALS >> 3),
        (lambda t: (t & 7 | 16) ^ 3, INTEGERS, (INTEGERS & 7 | 16) ^ 3),
        (lambda t: t << 1, INTEGERS, INTEGERS << 1),
        (lambda t: t >> 3, NATURALS, NATURALS >> 3),
        (nl.invert, INTEGERS, ~INTEGERS),
        (lambda t: ~t, NATURALS, ~NATURALS),
        (lambda t: t % 5, INTEGERS, INTEGERS % 5),
        (lambda t: t**2, REALS, REALS**2),
        (lambda t: t + np.int64(3), REALS, REALS + 3),
        (lambda t: np.float32(0.5) * t, REALS, REALS / 2),
        (lambda t: ~(t > 0), REALS, REALS <= 0),
        (lambda t: nl.invert(t > 0) & (t < -1) | (t > 1), REALS, np.abs(REALS) > 1),
        (lambda t: (t > 0) + (t > 1), REALS, np.where(REALS > 1, 2, REALS > 0)),
    ],
)
def test_bits_and_operators(make, x, expected):
    np.testing.assert_array_equal(run(make, x), expected)


def slope(function, x):
    """Of a function in float64: its error at this step is 1e-10."""
    return (function(x + 1e-5) - function(x - 1e-5)) / 2e-5


@pytest.mark.parametrize("name", ["erf", "gelu", "mish", "arctan", "erf_dx", "gelu_dx", "silu_dx"])
def test_activation_functions_of_the_api(name):
    erf = np.vectorize(math.erf)
    exact = {
        "erf": erf,
        "gelu": lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
        "arctan": np.arctan,
    }
    x = REALS.astype(np.float64)
    expected = slope(exact[name.removesuffix("_dx")], x) if name.endswith("_dx") else exact[name](x)
    np.testing.assert_allclose(run(getattr(nl, name), REALS), expected, rtol=1e-5, atol=1e-6)


def test_a_column_is_assigned_to_a_wider_tile():
    def make(tile):
        wide = nl.ndarray((37, 4, 6), nl.float32, buffer=nl.sbuf)
        wide[...] = tile[:, 5:6]
        return wide[:, 1]

    np.testing.assert_array_equal(run(make, REALS, columns=6), np.repeat(REALS[:, 5:6], 6, axis=1))


def test_an_infinity_spoils_a_row_of_the_tensor_engines_transpose():
    """It multiplies by an identity matrix, and infinity times zero is NaN; the Vector Engine moves bytes."""
    x = REALS[:32, :32].copy()
    x[3, 5] = np.inf
    turned = run(lambda t: nl.copy(nisa.nc_transpose(t, engine=nisa.tensor_engine)), x)
    assert np.isnan(np.delete(turned[5], 3)).all()
    np.testing.assert_array_equal(np.delete(turned, 5, 0), np.delete(x.T, 5, 0))
    np.testing.assert_array_equal(run(lambda t: nisa.nc_transpose(t, engine=nisa.vector_engine), x), x.T)


def test_outputs_are_returned_under_another_shape_but_whole():
    def kernel(x, part):
        out = nl.ndarray((37, 75), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x) * 2)
        return out[0:5] if part else out.reshape((75, 37))

    np.testing.assert_array_equal(simulate(kernel, REALS, False)[0], REALS.reshape(75, 37) * 2)
    assert simulate(kernel, TensorSpec((37, 75), "float32"), False, count_only=True)[0].shape == (75, 37)
    with pytest.raises(SimulatorError, match="returns whole tensors"):
        simulate(kernel, REALS, True)


def row_into_column(tile):
    column = nl.ndarray((75, 1), nl.float32, buffer=nl.sbuf)
    column[...] = nl.copy(tile[0:1, :])
    return column


def loaded_row_into_column(tile):
    column = nl.ndarray((75, 1), nl.float32, buffer=nl.sbuf)
    column[...] = tile[0:1, :]
    return column


def index_as_number(tile):
    for i in nl.affine_range(3):
        nl.add(tile, i)


def fill_with_an_index(tile):
    for i in nl.affine_range(3):
        nl.full((37, 1), i, nl.float32)


def not_a_mask(tile):
    nl.copy(tile, mask=~(nl.arange(37)[:, None] < 5))


REFUSED = [
    (row_into_column, "assignment of [1, 75] to a destination of [75, 1]"),
    (loaded_row_into_column, "assignment of [1, 75] to a destination of [75, 1]"),
    (index_as_number, "a tile or a number, found Expr"),
    (fill_with_an_index, "a tile or a number, found Expr"),
    (not_a_mask, "masks combine with `&` only"),
    (lambda t: nl.add(t, np.ones((37, 75), np.float32)), "a tile or a number, found ndarray"),
    (lambda t: t + [1, 2], "a tile or a number, found list"),
    (lambda t: nisa.tensor_scalar(t, nl.add, "1"), "a tile or a number, found str"),
    (lambda t: nl.copy(t, mask=None) if t == None else t, "a tile or a number, found NoneType"),  # noqa: E711
    (lambda t: np.sqrt(t), "numpy does not calculate with tensors"),
    (lambda t: t[:, -10:], "a negative end"),
    (lambda t: nisa.tensor_scalar(t, nl.bitwise_and, 7), "bit operators take integers"),
    (
        lambda t: nisa.tensor_scalar(t, nl.bitwise_and, 7, op1=nl.add, operand1=1),
        "both bit operators or both arithmetic",
    ),
    (lambda t: nisa.tensor_tensor_scan(t, t, 0.0, nl.bitwise_and, nl.add), "does not take the operator bitwise_and"),
    (lambda t: nisa.activation(nl.invert, t), "does not take the operator invert"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_one_sentence(make, words):
    with pytest.raises(SimulatorError) as error:
        run(make, REALS, strict=False)
    assert words in str(error.value)


def test_right_shift_of_a_negative_number():
    """Logical in the table of ALU operators, numpy's on the page of nl.right_shift."""
    with pytest.raises(SimulatorError, match="use an unsigned type"):
        run(lambda t: t >> 3, INTEGERS)


def two_in_psum(tile):
    twice = [nisa.nc_matmul(tile, tile) for _ in range(2)]
    return nl.add(*twice)


ONLY_LENIENT = [
    (lambda t: nisa.tensor_tensor(t, t[:, 0:1], nl.add), REALS + REALS[:, :1], "as many elements per partition"),
    (
        lambda t: nisa.scalar_tensor_tensor(data=t, op0=nl.multiply, operand0=2.0, op1=nl.add, operand1=t[:, 0:1]),
        2 * REALS + REALS[:, :1],
        "as many elements per partition",
    ),
    (two_in_psum, 2 * (REALS.T @ REALS), "two PSUM operands"),
]


@pytest.mark.parametrize(("make", "expected", "words"), ONLY_LENIENT)
def test_what_public_kernels_do_against_the_apis_words(make, expected, words):
    def kernel(x):
        out = nl.ndarray(expected.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, make(nl.load(x)))
        return out

    np.testing.assert_allclose(simulate(kernel, REALS, strict=False)[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SimulatorError, match=words):
        simulate(kernel, REALS)


def test_the_last_axes_are_reduced():
    x = REALS[:, :72].reshape(37, 6, 12)

    def kernel(x, axis):
        out = nl.ndarray((37, 72 // x.shape[axis]), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nisa.tensor_reduce(nl.add, nl.load(x), axis=[axis]))
        return out

    np.testing.assert_allclose(simulate(kernel, x, 2)[0], x.sum(2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(simulate(kernel, x, 1, strict=False)[0], x.sum(1), rtol=1e-5, atol=1e-5)
    with pytest.raises(SimulatorError, match="the last ones are reduced"):
        simulate(kernel, x, 1)


def loaded_in_part(x, rows, columns):
    """A [64, 80] tile of which the mask of the load leaves so many rows and columns."""
    p, f = nl.mgrid[0:64, 0:80]
    return nl.load(x[p, f], mask=(p < rows) & (f < columns))


def summed(tile):
    return nl.sum(nl.square(tile), axis=1, keepdims=True, mask=nl.arange(80)[None, :] < 75)


def multiplied(tile):
    acc = nl.zeros((80, 80), nl.float32, buffer=nl.psum)
    for _ in nl.affine_range(2):
        acc += nisa.nc_matmul(tile[0:37], tile[0:37])
    return nl.copy(acc)


def turned(tile):
    return nl.copy(nisa.nc_transpose(tile[0:37]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [(summed, (REALS**2).sum(1, keepdims=True)), (multiplied, 2 * REALS.T @ REALS), (turned, REALS.T)],
)
def test_what_does_not_depend_on_unwritten_memory_may_be_stored(make, expected):
    """Calculated without masks, as most public kernels do; strict runs want them everywhere."""

    def kernel(x):
        made = make(loaded_in_part(x, 37, 75))
        out = nl.ndarray(expected.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, made[0 : expected.shape[0], 0 : expected.shape[1]])
        return out

    np.testing.assert_allclose(simulate(kernel, REALS, strict=False)[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SimulatorError, match="never written"):
        simulate(kernel, REALS)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: nl.copy(nisa.nc_transpose(t)),  # rows that were not loaded are multiplied by zero, and may hold NaN
        lambda t: nl.copy(nisa.nc_matmul(t, t)),
        lambda t: nisa.tensor_tensor_scan(t, t, 0.0, nl.multiply, nl.add)[:, 78:80],
        lambda t: nl.sum(t, axis=1),
        lambda t: t[:, 78:80] * 2,
    ],
)
def test_what_depends_on_it_may_not(make):
    def kernel(x):
        made = make(loaded_in_part(x, 37, 75))
        out = nl.ndarray((8, 1), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, made[0:8, 0:1])
        return out

    with pytest.raises(SimulatorError, match="stores memory that was never written"):
        simulate(kernel, REALS, strict=False)


def running_sum(x, out, loop):
    sums = nl.zeros((37, 76), nl.float32)
    for i in loop(75):
        sums[:, nl.ds(i + 1, 1)] = nl.add(sums[:, nl.ds(i, 1)], nl.load(x[:, nl.ds(i, 1)]))
    nl.store(out, sums[:, 1:76])


def shifted(x, out, loop):
    """To the left in place: an iteration reads what a later one writes."""
    tile = nl.load(x)
    for i in loop(74):
        tile[:, nl.ds(i, 1)] = nl.copy(tile[:, nl.ds(i + 1, 1)])
    nl.store(out, tile)


def stored_twice(x, out, loop):
    """Tiles of 25 columns, 10 apart."""
    tile = nl.load(x)
    for i in loop(6):
        nl.store(out[:, nl.ds(10 * i, 25)], nl.add(tile[:, nl.ds(10 * i, 25)], 1.0))


def halo(x, out, loop):
    """Overlapping reads and writes side by side are independent, and so are changes in place."""
    tile, made = nl.load(x), nl.zeros((37, 75), nl.float32)
    for i in loop(37):
        made[:, nl.ds(2 * i, 2)] = nl.add(tile[:, nl.ds(2 * i, 2)], tile[:, nl.ds(2 * i + 1, 2)])
        made[:, nl.ds(2 * i, 2)] = nl.multiply(made[:, nl.ds(2 * i, 2)], 2.0)
    nl.store(out, made)


SUMS, MOVED, PLUS, BOTH = REALS.cumsum(1), np.roll(REALS, -1, 1), REALS + 1, np.zeros_like(REALS)
MOVED[:, -1] = REALS[:, -1]
BOTH[:, :74] = 2 * (REALS[:, :74] + REALS[:, 1:])


@pytest.mark.parametrize(
    ("body", "expected"), [(running_sum, SUMS), (shifted, MOVED), (stored_twice, PLUS), (halo, BOTH)]
)
def test_iterations_of_an_affine_loop_are_independent(body, expected):
    def kernel(x, loop):
        out = nl.ndarray((37, 75), nl.float32, buffer=nl.shared_hbm)
        body(x, out, loop)
        return out

    np.testing.assert_allclose(simulate(kernel, REALS, nl.sequential_range)[0], expected, rtol=1e-4, atol=1e-5)
    if body is halo:
        np.testing.assert_allclose(simulate(kernel, REALS, nl.affine_range)[0], expected, rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(SimulatorError, match="in another iteration of an affine"):
        simulate(kernel, REALS, nl.affine_range)
