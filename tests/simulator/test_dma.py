"""Transfers: copies within HBM, accumulation, index tiles, transposing loads; against numpy."""

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki

X = np.random.default_rng(0).standard_normal((60, 48)).astype(np.float32)


def gather(x, step, mode):
    """Rows 0, step, 2 step, ... of x over a tile of -1."""
    out = nl.ndarray((30, 48), nl.float32, buffer=nl.shared_hbm)
    index = nisa.iota(step * nl.arange(30)[:, None], dtype=nl.int32)
    i_p, i_f = nl.mgrid[0:30, 0:48]
    tile = nisa.memset((30, 48), -1, nl.float32)
    nisa.dma_copy(src=x[index, i_f], dst=tile[i_p, i_f], oob_mode=mode)
    nl.store(out, tile)
    return out


def test_gather_by_an_index_tile():
    got, trace = simulate(gather, X, 2, nisa.oob_mode.error)
    assert np.array_equal(got, X[::2])
    assert trace.hbm_read_bytes == 30 * 48 * 4


def test_addresses_outside_are_skipped_or_refused():
    got, _ = simulate(gather, X, 3, nisa.oob_mode.skip)
    assert np.array_equal(got[:20], X[::3])
    assert (got[20:] == -1).all()
    with pytest.raises(SimulatorError, match=r"out of bounds.*test_dma.py"):
        simulate(gather, X, 3, nisa.oob_mode.error)
    with pytest.raises(IndexError):
        simulate(gather, X, 3, nisa.oob_mode.error, strict=False)


@pytest.mark.parametrize(
    ("value", "by_column", "dtype", "message"),
    [
        (-1, False, nl.int32, "index -1 is out of bounds"),
        (-1, False, nl.float32, "holds integers, found float32"),
        (50, True, nl.int32, "index 50 is out of bounds of a dimension of 48"),
        (None, False, nl.int32, "index tile .* never written"),
    ],
)
def test_a_wrong_index_tile_is_refused(value, by_column, dtype, message):
    """A negative index does not count from the end, a column index does not reach into the next row."""

    def kernel(x):
        out = nl.ndarray((30, 48), nl.float32, buffer=nl.shared_hbm)
        index = nl.ndarray((30, 1), dtype, buffer=nl.sbuf)
        if value is not None:
            index[...] = nl.full((30, 1), value, dtype)
        _, i_f = nl.mgrid[0:30, 0:48]
        nl.store(out[:, 0:1] if by_column else out, nl.load(x[0, index] if by_column else x[index, i_f]))
        return out

    with pytest.raises(SimulatorError, match=message):
        simulate(kernel, X)


@pytest.mark.parametrize("accumulate", [True, False])
def test_index_tiles_do_not_reach_unwritten_memory(accumulate):
    def kernel(x):
        out = nl.ndarray((60, 48), nl.float32, buffer=nl.shared_hbm)
        scratch = nl.ndarray((60, 48), nl.float32, buffer=nl.hbm)
        index = nisa.iota(2 * nl.arange(30)[:, None], dtype=nl.int32)
        _, i_f = nl.mgrid[0:30, 0:48]
        if accumulate:
            nisa.dma_copy(dst=out[index, i_f], src=nl.load(x[0:30, :]), dst_rmw_op=np.add)
        else:
            nl.store(out[0:30, :], nl.load(scratch[index, i_f]))
        return out

    with pytest.raises(SimulatorError, match="never written.*test_dma.py"):
        simulate(kernel, X)


def test_scatter_and_accumulate():
    def kernel(x):
        out = nl.ndarray((60, 48), nl.float32, buffer=nl.shared_hbm)
        index = nisa.iota(2 * nl.arange(30)[:, None], dtype=nl.int32)
        _, i_f = nl.mgrid[0:30, 0:48]
        nisa.dma_copy(dst=out, src=x)
        nisa.dma_copy(dst=out[index, i_f], src=nl.load(x[0:30, :]), dst_rmw_op=np.add)
        return out

    expected = X.copy()
    expected[::2] += X[:30]
    assert np.array_equal(simulate(kernel, X)[0], expected)


def test_hbm_to_hbm_copies_count_both_ways_and_may_exceed_128_rows():
    def kernel(x):
        out = nl.ndarray((300, 4), nl.bfloat16, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x)
        return out

    x = np.ones((300, 4), np.float32)
    got, trace = simulate(kernel, x)
    assert np.array_equal(got.astype(np.float32), x)
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes, trace.sbuf_peak_bytes) == (4800, 2400, 0)


def test_private_hbm_is_scratch_and_counted():
    def kernel(x):
        out, scratch = (
            nl.ndarray((60, 48), nl.float32, buffer=nl.shared_hbm),
            nl.ndarray((60, 48), nl.float32, buffer=nl.hbm),
        )
        nl.store(scratch, nl.load(x))
        nl.store(out, nl.load(scratch))
        return out

    got, trace = simulate(kernel, X)
    assert np.array_equal(got, X)
    assert trace.hbm_bytes == 4 * X.nbytes


def test_transposing_load_moves_single_elements():
    def kernel(x):
        out = nl.ndarray((48, 60), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load_transpose2d(x))
        return out

    got, trace = simulate(kernel, X)
    assert np.array_equal(got, X.T)
    assert trace.dma_runs[4] == X.size


def test_dma_transpose_runs_leniently_with_a_warning_in_the_trace():
    def kernel(x):
        out = nl.ndarray((48, 60), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nisa.dma_transpose(x))
        return out

    got, trace = simulate(nki.jit(kernel), X, strict=False)
    assert np.array_equal(got, X.T)
    assert "does not exist on Trn1" in trace.warnings[0]


def test_where_ignores_the_branch_not_taken():
    def kernel(x):
        out = nl.ndarray((60, 48), nl.float32, buffer=nl.shared_hbm)
        tile = nl.load(x)
        nl.store(out, nl.where(nl.greater(tile, 0.0), nl.log(tile), -5.0))
        return out

    expected = np.where(X > 0, np.log(np.abs(X)), np.float32(-5))
    np.testing.assert_allclose(simulate(kernel, X)[0], expected, rtol=1e-6)
