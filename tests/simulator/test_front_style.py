"""What `simulate(..., aws_style=True)` refuses: for each rule a kernel that breaks it alone, and what breaks none."""

from functools import lru_cache

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl

X = np.arange(128 * 64, dtype=np.float32).reshape(128, 64) % 7
ONES = np.ones((128, 128), np.float32)


def refused(kernel, message, *arrays):
    """The kernel runs as it is, and is refused in AWS's style."""
    arrays = arrays or (X,)
    expected = simulate(kernel, *arrays)[0]
    with pytest.raises(SimulatorError, match=message):
        simulate(kernel, *arrays, aws_style=True)
    return expected


def test_a_lambda():
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        double = lambda tile: nl.add(tile, tile)  # noqa: E731 (the rule)
        nl.store(out, value=double(nl.load(x)))
        return out

    np.testing.assert_array_equal(refused(kernel, "a lambda"), 2 * X)


def _apply(tile, function):
    return function(tile)


def _double(tile):
    return nl.add(tile, tile)


def test_a_function_as_an_argument():
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, value=_apply(nl.load(x), _double))
        return out

    np.testing.assert_array_equal(refused(kernel, r"_apply\(function=...\) is given a function"), 2 * X)


def _three(count):
    return nl.full((128, count), 3, dtype=nl.float32, buffer=nl.sbuf)


def test_a_helper_that_makes_tensors_of_nothing():
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nl.store(out, value=_three(x.shape[1]))
        return out

    assert (refused(kernel, "_three takes no tensor and returns one") == 3).all()


def test_sums_that_take_turns_in_a_bank():
    def kernel(x, ones):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        tile, weights = nl.load(x), nl.load(ones)
        total = nl.zeros((128, 64), dtype=nl.float32, buffer=nl.psum)
        for _ in nl.affine_range(2):
            for j in nl.affine_range(2):
                total[0:128, nl.ds(j * 32, 32)] += nisa.nc_matmul(weights, tile[0:128, nl.ds(j * 32, 32)])
        nl.store(out, value=nl.copy(total))
        return out

    np.testing.assert_array_equal(refused(kernel, "take turns in one PSUM bank", X, ONES), 2 * ONES @ X)


def test_a_sum_that_goes_on_after_another():
    def kernel(x, ones):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        tile, weights = nl.load(x), nl.load(ones)
        total = nl.zeros((128, 64), dtype=nl.float32, buffer=nl.psum)
        total[0:128, 0:32] += nisa.nc_matmul(weights, tile[0:128, 0:32])
        total[0:128, 32:64] += nisa.nc_matmul(weights, tile[0:128, 32:64])
        total[0:128, 0:32] += nisa.nc_matmul(weights, tile[0:128, 0:32])
        nl.store(out, value=nl.copy(total))
        return out

    refused(kernel, "take turns in one PSUM bank", X, ONES)


@lru_cache
def _planned(rows):
    return sorted([rows, 2 * rows], key=lambda n: -n)


def _add_column_sums(total, weights, tile, j):
    for _ in nl.affine_range(2):
        total[0:128, nl.ds(j * 32, 32)] += nisa.nc_matmul(weights, tile[0:128, nl.ds(j * 32, 32)])


def test_what_aws_does_is_not_refused():
    """A cached plan with a lambda, lists of tensors, helpers of tensors, sums one after the other in a bank."""

    def kernel(x, ones):
        assert _planned(64) == [128, 64]
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        tile, weights = nl.load(x), nl.load(ones)
        totals = []
        for columns in (64, 64):
            totals.append(nl.zeros((128, columns), dtype=nl.float32, buffer=nl.psum))
        for total in totals:
            for j in nl.affine_range(2):
                _add_column_sums(total, weights, tile, j)
        nl.store(out, value=_double(nl.copy(totals[1])))
        return out

    np.testing.assert_array_equal(simulate(kernel, X, ONES, aws_style=True)[0], 4 * ONES @ X)
