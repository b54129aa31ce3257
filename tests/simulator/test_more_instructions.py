"""Instructions that only other people's kernels use, each against numpy at a round and an odd shape."""

import importlib

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import TensorSpec, as_neuronxcc, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki

SHAPES = [(128, 512), (37, 75)]


def rows(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(make, x, *more, columns=None, **options):
    """A kernel that loads x whole, applies `make` to the tile and stores the result."""

    def kernel(x, *more):
        shape = (x.shape[0], columns or x.shape[1])
        out = nl.ndarray(shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, make(nl.load(x), *[nl.load(m) for m in more]))
        return out

    return simulate(nki.jit(kernel), x, *more, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_select_keeps_the_lower_triangle(shape):
    x = rows(shape)
    i = np.indices(shape)

    def make(tile):
        i_p, i_f = nl.mgrid[0 : shape[0], 0 : shape[1]]
        return nisa.affine_select(i_p + 3 >= i_f, tile, -7.5)

    out, trace = run(make, x)
    np.testing.assert_array_equal(out, np.where(i[0] + 3 >= i[1], x, -7.5))
    assert trace.gpsimd_cycles == 150 + shape[1]


def test_affine_select_and_iota_know_the_iteration():
    def kernel(x):
        out = nl.ndarray((3, 32, 8), nl.float32, buffer=nl.shared_hbm)
        for k in nl.affine_range(3):
            i_p, i_f = nl.mgrid[0:32, 0:8]
            tile = nl.copy(nisa.iota(100 * k + 8 * i_p + i_f, dtype=nl.int32), dtype=nl.float32)
            nl.store(out[k], nisa.affine_select(i_f < 2 * k, tile, -1.0))
        return out

    out, _ = simulate(nki.jit(kernel), rows((32, 8)))
    k, p, f = np.indices((3, 32, 8))
    np.testing.assert_array_equal(out, np.where(f < 2 * k, 100 * k + 8 * p + f, -1))


def test_affine_select_takes_one_comparison_of_the_tiles_rank():
    def two(tile):
        i_p, i_f = nl.mgrid[0:128, 0:512]
        return nisa.affine_select((i_p >= i_f) & (i_f > 3), tile, 0.0)

    with pytest.raises(SimulatorError, match="one affine comparison"):
        run(two, rows((128, 512)))
    with pytest.raises(SimulatorError, match="one affine comparison"):
        run(lambda tile: nisa.affine_select(True, tile, 0.0), rows((128, 512)))


def test_a_quotient_of_integers_is_a_fraction():
    def kernel(x):
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x) / 4)
        return out

    x = np.arange(64, dtype=np.int32).reshape(32, 2)
    np.testing.assert_array_equal(simulate(nki.jit(kernel), x)[0], x / 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_where_broadcasts_its_values_to_the_condition(shape):
    x, y = rows(shape), rows((1, shape[1]), seed=1)
    out, _ = run(lambda a, b: nl.where(nl.greater(a, 0.5), b, a), x, y)
    np.testing.assert_array_equal(out, np.where(x > 0.5, y, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_max8(shape):
    x = rows(shape)
    out, trace = run(lambda tile: nisa.max8(src=tile), x, columns=8)
    np.testing.assert_array_equal(out, -np.sort(-x, axis=1)[:, :8])
    assert trace.vector_cycles == max(64, shape[1])
    with pytest.raises(SimulatorError, match="7 elements per partition"):
        run(lambda tile: nisa.max8(src=tile[:, 0:7]), x, columns=8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_tensor_tensor_scan(shape, reverse):
    x, y = rows(shape) / 2, rows(shape, seed=1)

    def make(a, b):
        start = nisa.memset((shape[0], 1), 0.25, nl.float32)
        return nisa.tensor_tensor_scan(a, b, start, np.multiply, np.subtract, reverse1=reverse)

    out, trace = run(make, x, y)
    state, expected = np.full(shape[0], 0.25), []
    for i in range(shape[1]):
        state = y[:, i] - x[:, i] * state if reverse else x[:, i] * state - y[:, i]
        expected.append(state)
    expected = np.stack(expected, 1)
    # every step rounds twice, and a step multiplies the error before it by |x|
    growth = np.zeros(shape[0])
    bound = []
    for i in range(shape[1]):
        growth = growth * np.abs(x[:, i]) + 2 * 2**-24 * (np.abs(y[:, i]) + np.abs(expected[:, i]) + 1)
        bound.append(growth)
    assert (np.abs(out - expected) <= 2 * np.stack(bound, 1)).all()
    assert trace.vector_cycles == max(64, 2 * shape[1]) + 64


@pytest.mark.parametrize("shape", SHAPES)
def test_activation_reduce_sums_what_the_function_gives(shape):
    x = rows(shape)

    def kernel(x):
        out = nl.ndarray((shape[0], shape[1] + 1), nl.float32, buffer=nl.shared_hbm)
        row = nl.ndarray((shape[0], shape[1] + 1), nl.float32)
        row[:, 0 : shape[1]] = nisa.activation_reduce(
            np.exp, nl.load(x), reduce_op=np.add, reduce_res=row[:, shape[1] :], scale=0.5
        )
        nl.store(out, row)
        return out

    out, trace = simulate(nki.jit(kernel), x)
    exact = np.exp(x.astype(np.float64) / 2)
    np.testing.assert_allclose(out[:, :-1], exact, rtol=2**-20)
    np.testing.assert_allclose(out[:, -1], exact.sum(1), rtol=2**-18)
    assert trace.scalar_cycles == max(64, shape[1]) + 64


def test_reductions_of_activation_that_are_not_simulated_are_named():
    def make(command):
        res = nl.ndarray((128, 1), nl.float32)
        return lambda tile: nisa.activation(np.exp, tile, reduce_op=np.add, reduce_res=res, reduce_cmd=command)

    def kernel(x):
        make(nisa.reduce_cmd.reduce)(nl.load(x))

    with pytest.raises(SimulatorError, match=r"reduce_cmd.reduce is not simulated"):
        simulate(nki.jit(kernel), rows((128, 512)))


def reduced(x, blocks, op, start=None):
    out = nl.ndarray((128, 16), nl.float32, buffer=nl.shared_hbm)
    kept = nl.ndarray((128, 16), nl.float32) if start is None else nl.full((128, 16), start, nl.float32)
    for i in nl.affine_range(blocks):
        tile = nl.load(x[:, nl.ds(16 * i, 16)])
        kept[...] = nl.loop_reduce(tile, op=op, loop_indices=[i])
    nl.store(out, kept)
    return out


@pytest.mark.parametrize("op", [np.max, np.add, nl.minimum])
@pytest.mark.parametrize("blocks", [1, 5])
def test_loop_reduce_starts_with_the_first_tile_it_meets(op, blocks):
    x = np.round(rows((128, 16 * blocks)) * 64)  # integers: sums are exact in any order
    pieces = x.reshape(128, blocks, 16)
    expected = {np.max: pieces.max(1), np.add: pieces.sum(1)}.get(op, pieces.min(1))
    np.testing.assert_array_equal(simulate(nki.jit(reduced), x, blocks, op)[0], expected)


def test_loop_reduce_goes_on_from_what_the_tensor_holds():
    x = np.ones((128, 32), np.float32)
    assert (simulate(nki.jit(reduced), x, 2, np.add, 5.0)[0] == 7).all()


def test_loop_reduce_needs_a_tensor_and_its_loops():
    def lost(x):
        for i in nl.affine_range(2):
            nl.loop_reduce(nl.load(x), op=np.add, loop_indices=[i])

    with pytest.raises(SimulatorError, match="assign the result"):
        simulate(nki.jit(lost), rows((128, 16)))

    def unlisted(x):
        kept = nl.zeros((128, 16), nl.float32)
        for i in nl.affine_range(2):
            for _ in nl.affine_range(2):
                kept[...] = nl.loop_reduce(nl.load(x), op=np.add, loop_indices=[i])

    with pytest.raises(SimulatorError, match="same place"):
        simulate(nki.jit(unlisted), rows((128, 16)))


@pytest.mark.parametrize("columns", [512, 77])
def test_a_mask_of_nc_matmul_bounds_its_result(columns):
    def kernel(a, b):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        acc = nl.zeros((128, 512), nl.float32, buffer=nl.psum, lazy_initialization=True)
        i_f = nl.arange(512)[None, :]
        right = nl.ndarray((64, 512), nl.float32)  # its columns beyond the mask hold nothing
        right[:, 0:columns] = nl.load(b)
        acc += nisa.nc_matmul(nl.load(a), right, mask=i_f < columns)
        nl.store(out, acc)
        return out

    a, b = np.round(rows((64, 128)) * 8), np.round(rows((64, columns), 1) * 8)
    expected = np.zeros((128, 512))
    expected[:, :columns] = a.T @ b
    np.testing.assert_array_equal(simulate(nki.jit(kernel), a, b)[0], expected)


def from_psum(x):
    out = nl.ndarray((128, 128), nl.float32, buffer=nl.shared_hbm)
    tile = nl.load(x)
    turned = nisa.nc_transpose(tile)
    nl.store(out, nisa.nc_matmul(turned, tile))
    return out


def test_a_matmul_operand_in_psum_is_refused_or_copied_with_a_warning():
    x = np.round(rows((128, 128)) * 8)
    with pytest.raises(SimulatorError, match="must be in sbuf, found in psum"):
        simulate(nki.jit(from_psum), x)
    out, trace = simulate(nki.jit(from_psum), x, strict=False)
    np.testing.assert_array_equal(out, x @ x)
    assert any("in PSUM" in warning for warning in trace.warnings)


def test_a_1d_load_is_a_column():
    def kernel(x):
        out = nl.ndarray((100, 1), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x[nl.ds(28, 100), 3]))
        return out

    x = rows((128, 4))
    np.testing.assert_array_equal(simulate(nki.jit(kernel), x)[0], x[28:, 3:])
    with pytest.raises(SimulatorError, match="129 exceeds"):
        simulate(nki.jit(lambda x: nl.load(x)), TensorSpec((129,), np.float32), count_only=True)


def test_names_that_other_peoples_kernels_import():
    with as_neuronxcc():
        trace = importlib.import_module("neuronxcc.nki").trace
        typing = importlib.import_module("neuronxcc.nki.typing")
        isa = importlib.import_module("neuronxcc.nki.isa.constants")
        sizes = importlib.import_module("neuronxcc.nki.language.constants")
    assert trace(test_a_1d_load_is_a_column) is test_a_1d_load_is_a_column
    assert typing.scalar
    assert isa.oob_mode.skip == nisa.oob_mode.skip
    assert [sizes.sizeinbytes(t) for t in (nl.bfloat16, nl.float32, nl.uint8)] == [2, 4, 1]
    assert nl.finfo(nl.bfloat16).min == -3.3895313892515355e38
    for module, name in ((sizes, "sbuf_min_align"), (isa, "no_such")):
        with pytest.raises(SimulatorError, match=f"constants.{name} is not simulated"):
            getattr(module, name)
