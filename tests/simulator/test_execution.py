"""Semantics: order of iterations, rounding, masks, indexing styles, grids, reuse of results; each against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import TensorSpec, as_neuronxcc, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki
from nxdi_svd_plugin.simulator.program.affine import UnrollRequest


def rows(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@nki.jit
def running_sum(x, ordered):
    """Keeps the prefix sum of column blocks in one buffer: a dependency between iterations."""
    out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
    total = nl.zeros((128, 1), nl.float32)
    for i in nl.sequential_range(8) if ordered else nl.affine_range(8):
        total += nl.load(x[:, nl.ds(i, 1)])
        nl.store(out[:, nl.ds(i, 1)], total)
    return out


def test_a_planted_dependency_shows_in_affine_range_and_not_in_sequential_range():
    x = rows((128, 8))
    expected = np.cumsum(x, axis=1, dtype=np.float32)
    np.testing.assert_allclose(simulate(running_sum, x, True)[0], expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(simulate(running_sum, x, False)[0], expected)


@pytest.mark.parametrize("seed", range(8))
def test_two_iterations_never_run_in_the_written_order(seed):
    @nki.jit
    def last(x):
        out = nl.ndarray((2, 4), nl.float32, buffer=nl.shared_hbm)
        total = nl.zeros((1, 4), nl.float32)
        for i in nl.affine_range(2):
            total += nl.load(x[nl.ds(i, 1), :])
            nl.store(out[nl.ds(i, 1), :], total)
        return out

    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(simulate(last, x, seed=seed)[0][:, 0], [2, 1])


def test_the_order_is_seeded():
    x = rows((128, 8))
    first, again, other = (simulate(running_sum, x, False, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dtype", [nl.bfloat16, nl.float16, nl.float8_e4m3, nl.float8_e5m2])
def test_engines_compute_in_fp32_and_round_once_at_the_write(dtype):
    @nki.jit
    def chain(x, y):
        out = nl.ndarray((128, 64), dtype, buffer=nl.shared_hbm)
        a, b = nl.load(x), nl.load(y)
        nl.store(out, nisa.tensor_scalar(a, np.multiply, 1.2, op1=np.add, operand1=b, dtype=dtype))
        return out

    x, y = rows((128, 64), dtype), rows((128, 1), dtype, 1)
    got, _ = simulate(chain, x, y)
    expected = (x.astype(np.float32) * np.float32(1.2) + y.astype(np.float32)).astype(dtype)
    assert np.array_equal(got.view(np.uint8), expected.view(np.uint8))


def test_two_roundings_are_two_roundings():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, 64), nl.float32, buffer=nl.shared_hbm)
        low = nl.ndarray((128, 64), nl.bfloat16)
        low[...] = nl.exp(nl.load(x))
        nl.store(out, nl.add(low, low, dtype=nl.float32))
        return out

    x = rows((128, 64))
    assert np.array_equal(simulate(kernel, x)[0], 2 * np.exp(x).astype(nl.bfloat16).astype(np.float32))


def masked_double(x):
    n, m = x.shape
    out = nl.ndarray((n, m), nl.float32, buffer=nl.shared_hbm)
    i_p, i_f = nl.mgrid[0:128, 0:100]
    for i in nl.affine_range(-(-n // 128)):
        for j in nl.affine_range(-(-m // 100)):
            mask = (i * 128 + i_p < n) & (j * 100 + i_f < m)
            tile = nl.load(x[i * 128 + i_p, j * 100 + i_f], mask=mask)
            nl.store(out[i * 128 + i_p, j * 100 + i_f], nl.add(tile, tile, mask=mask), mask=mask)
    return out


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 300), m=st.integers(1, 250), seed=st.integers(0, 3))
def test_masks_cover_any_tail_and_are_counted_exactly(n, m, seed):
    x = rows((n, m))
    got, full = simulate(masked_double, x, seed=seed)
    assert np.array_equal(got, 2 * x)
    assert full.hbm_read_bytes == full.hbm_write_bytes == n * m * 4
    assert simulate(masked_double, TensorSpec(x.shape, x.dtype), count_only=True)[1] == full


def test_an_if_on_an_affine_condition_unrolls_its_loop():
    @nki.jit
    def triangle(x):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        for i in nl.affine_range(4):
            for j in nl.affine_range(4):
                if j < i:
                    nl.store(
                        out[nl.ds(i * 32, 32), nl.ds(j * 128, 128)], nl.load(x[nl.ds(i * 32, 32), nl.ds(j * 128, 128)])
                    )
                else:
                    nl.store(out[nl.ds(i * 32, 32), nl.ds(j * 128, 128)], 0.0)
        return out

    x = rows((128, 512))
    got, trace = simulate(triangle, x)
    keep = np.arange(512)[None, :] // 128 < np.arange(128)[:, None] // 32
    assert np.array_equal(got, np.where(keep, x, 0))
    assert trace.hbm_read_bytes == keep.sum() * 4
    assert simulate(triangle, TensorSpec(x.shape, x.dtype), count_only=True)[1] == trace


def test_python_side_effects_in_a_body_happen_once_as_on_the_device():
    seen = []

    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        for i in nl.affine_range(4):
            seen.append(i)
            nl.store(out[:, nl.ds(i * 128, 128)], nl.load(x[:, nl.ds(i * 128, 128)]))
        return out

    simulate(kernel, rows((128, 512)))
    assert len(seen) == 1


def test_static_range_gives_integers():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        for i in nl.static_range(4):
            scale = [1.0, -1.0][i % 2]
            nl.store(out[:, i * 128 : (i + 1) * 128], nl.multiply(nl.load(x[:, nl.ds(i * 128, 128)]), scale))
        return out

    x = rows((128, 512))
    assert np.array_equal(simulate(kernel, x)[0], x * np.repeat([1, -1, 1, -1], 128).astype(np.float32))


def test_block_dimensions_tuples_and_quasi_affine_offsets():
    @nki.jit
    def kernel(x):
        first, second = (
            nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm),
            nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm),
        )
        blocks = nl.zeros((4, nl.par_dim(128), 128), nl.float32)
        pair = nl.ndarray((128, 2, 128), nl.float32)
        for i in nl.sequential_range(4):
            blocks[i] = nl.load(x[:, nl.ds(i * 128, 128)])
            pair[:, i % 2, :] = nl.copy(blocks[i])
            nl.store(first[:, nl.ds((i // 2) * 256 + (i % 2) * 128, 128)], blocks[i])
            nl.store(second[:, nl.ds(i * 128, 128)], pair[:, i % 2, :])
        return first, second

    x = rows((128, 512))
    (first, second), _ = simulate(kernel, x)
    assert np.array_equal(first, x)
    assert np.array_equal(second, x)


def test_strided_and_permuted_free_access():
    @nki.jit
    def swap_halves_of_pairs(x):
        out = nl.ndarray((16, 24), nl.float32, buffer=nl.shared_hbm)
        tile = nl.load(x)
        i_p, i_a, i_b = nl.mgrid[0:16, 0:4, 0:6]
        made = nl.ndarray((16, 24), nl.float32)
        made[i_p, i_b * 4 + i_a] = nl.copy(tile[i_p, i_a * 6 + i_b])
        nl.store(out, made)
        return out

    x = rows((16, 24))
    expected = x.reshape(16, 4, 6).transpose(0, 2, 1).reshape(16, 24)
    assert np.array_equal(simulate(swap_halves_of_pairs, x)[0], expected)


def test_operand_masks_of_a_matmul():
    @nki.jit
    def kernel(a, b):
        out = nl.ndarray((48, 96), nl.float32, buffer=nl.shared_hbm)
        i_p, i_m = nl.mgrid[0:128, 0:64]
        _, i_n = nl.mgrid[0:128, 0:128]
        left, right = nl.load(a), nl.load(b)
        product = nisa.nc_matmul(left[(i_p < 100) & (i_m < 48)], right[(i_p < 100) & (i_n < 96)])
        nl.store(out, product[0:48, 0:96])
        return out

    a, b = rows((128, 64)), rows((128, 128), seed=1)
    got, trace = simulate(kernel, a, b)
    np.testing.assert_allclose(got, a[:100, :48].T @ b[:100, :96], rtol=1e-4, atol=1e-4)
    assert trace.matmul_flops == 2 * 100 * 48 * 96


def test_transposes_are_counted_apart_and_share_a_bank():
    @nki.jit
    def transpose(x):
        out = nl.ndarray((128, 512), x.dtype, buffer=nl.shared_hbm)
        for i in nl.affine_range(1):
            bank = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
            for j in nl.affine_range(4):
                bank[:, nl.ds(j * 128, 128)] = nisa.nc_transpose(nl.load(x[nl.ds(j * 128, 128), nl.ds(i * 128, 128)]))
            nl.store(out, nl.copy(bank, dtype=x.dtype))
        return out

    x = rows((512, 128), nl.bfloat16)
    got, trace = simulate(transpose, x)
    assert np.array_equal(got.astype(np.float32), x.T.astype(np.float32))
    assert (trace.matmul_flops, trace.transpose_flops) == (0, 4 * 2 * 128**3)
    assert (trace.pe_cycles, trace.scalar_cycles, trace.psum_peak_banks) == (4 * 128, 512, 1)


def test_a_part_changed_in_place_may_be_assigned_to_another_part():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        tile = nl.load(x)
        left = tile[:, 0:256]
        left += 1.0
        tile[:, 256:512] = left
        nl.store(out, tile)
        return out

    x = rows((128, 512))
    np.testing.assert_array_equal(simulate(kernel, x)[0], np.tile(x[:, :256] + 1, (1, 2)))


def test_a_result_used_after_its_assignment_keeps_its_value():
    @nki.jit
    def kernel(x):
        out, again = (
            nl.ndarray((128, 64), nl.float32, buffer=nl.shared_hbm),
            nl.ndarray((128, 64), nl.float32, buffer=nl.shared_hbm),
        )
        kept = nl.ndarray((128, 64), nl.float32)
        tile = nl.load(x)
        kept[...] = tile
        kept[...] = nl.add(kept, 1.0)
        nl.store(out, kept)
        nl.store(again, tile)
        return out, again

    x = rows((128, 64))
    (changed, original), _ = simulate(kernel, x)
    assert np.array_equal(changed, x + 1)
    assert np.array_equal(original, x)


def test_grid_instances_and_program_ids():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((256, 1024), nl.float32, buffer=nl.shared_hbm)
        i, j = nl.program_id(0), nl.program_id(1)
        assert nl.num_programs() == (2, 2)
        tile = nl.load(x[nl.ds(i * 128, 128), nl.ds(j * 512, 512)])
        nl.store(out[nl.ds(i * 128, 128), nl.ds(j * 512, 512)], tile)
        return out

    x = rows((256, 1024))
    assert np.array_equal(kernel[2, 2](x), x)
    assert np.array_equal(nki.simulate_kernel(kernel[2, 2], x), x)
    with pytest.raises(SimulatorError, match="program_id"):
        kernel(x)


def test_several_cores_per_kernel_are_for_trn2():
    def kernel(x):
        out = nl.ndarray((256, 64), nl.float32, buffer=nl.shared_hbm)
        i = nl.program_id(0)
        nl.store(out[nl.ds(i * 64, 64), :], nl.load(x[nl.ds(i * 64, 64), :]))
        return out

    x = rows((256, 64))
    for grid in (nl.nc(2) * 2, nl.spmd_dim(2, nl.nc(2))):
        assert np.array_equal(nki.jit(kernel, platform_target="trn2")[grid](x), x)
        with pytest.raises(SimulatorError, match="one core of Trn1"):
            nki.jit(kernel)[grid]


def test_grid_instances_must_write_apart():
    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x))
        return out

    with pytest.raises(SimulatorError, match="err_unexpected_output_dependencies"):
        kernel[2](rows((128, 512)))


def test_as_neuronxcc_is_lenient_and_leaves_nothing_behind():
    import sys

    source = """
import neuronxcc.nki as nki
import neuronxcc.nki.language as nl
from neuronxcc.nki.typing import tensor

@nki.jit(mode="simulation")
def tail(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    i_p, i_f = nl.mgrid[0:128, 0:64]
    tile: tensor[128, 64] = nl.load(x[i_p, i_f], mask=i_p < 100)
    nl.store(out[i_p, i_f], nl.exp(tile), mask=i_p < 100)
    return out
"""
    namespace = {}
    with as_neuronxcc():
        exec(source, namespace)
    assert not any(name.startswith("neuronxcc") for name in sys.modules)
    x = rows((100, 64))
    np.testing.assert_allclose(namespace["tail"](x), np.exp(x), rtol=1e-6)
    with pytest.raises(SimulatorError, match="never written"):
        simulate(namespace["tail"], x)


def test_our_kernels_stay_strict_inside_as_neuronxcc():
    @nki.jit
    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nl.store(out[0:64], nl.load(x[0:64]))
        return out

    with as_neuronxcc(), pytest.raises(SimulatorError, match="never written"):
        kernel(rows((128, 64)))


def test_an_index_of_a_loop_that_has_ended_decides_nothing():
    kept = []

    @nki.jit
    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        for i in nl.affine_range(2):
            kept.append(i < 1)
            nl.store(out[nl.ds(i * 64, 64)], nl.load(x[nl.ds(i * 64, 64)]))
        return out

    kernel(rows((128, 64)))
    with pytest.raises(UnrollRequest, match="test_execution.py"):
        bool(kept[0])
