"""S S^T = C + ridge I: exact when C is regular, the smallest ridge when it is not, never NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.factorize.whitening import RIDGES, SMALLEST_PIVOT, whiten

EPS = torch.finfo(torch.float64).eps


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(x):
    return x.T @ x


def rebuilt_error(whitening, c):
    """|S S^T - (C + ridge I)|, largest entry, relative to the largest of C."""
    ridge = whitening.relative_ridge * c.diagonal().mean()
    wanted = c + ridge * torch.eye(len(c), dtype=c.dtype)
    return float((whitening.root @ whitening.root.T - wanted).abs().max() / c.abs().max())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(0, 60), st.floats(-3, 3), st.integers(0, 99))
def test_any_covariance_has_a_finite_root(size, extra, decades, seed):
    """Regular for tokens >= size, rank-deficient below; channels that differ by up to six decades."""
    x = draw(extra + 1, size, seed=seed) * torch.logspace(-abs(decades), decades, size, dtype=torch.float64)
    c = summed(x)
    found = whiten(c)
    assert torch.isfinite(found.root).all() and torch.equal(found.root, found.root.tril())
    assert found.relative_ridge in RIDGES
    assert rebuilt_error(found, c) < 10 * size * EPS


def test_a_regular_covariance_gets_no_ridge():
    c = summed(draw(200, 11))
    found = whiten(c)
    assert found.relative_ridge == 0
    torch.testing.assert_close(found.root, torch.linalg.cholesky(c))


@pytest.mark.parametrize("tokens", [1, 3, 12])
def test_fewer_tokens_than_channels_get_the_smallest_ridge_that_works(tokens):
    c = summed(draw(tokens, 13))
    found = whiten(c)
    assert 0 < found.relative_ridge <= 1e-10
    smaller = RIDGES[RIDGES.index(found.relative_ridge) - 1]
    shifted = c + smaller * c.diagonal().mean() * torch.eye(13, dtype=torch.float64)
    root, failed = torch.linalg.cholesky_ex(shifted)
    pivots = root.diagonal().square()
    assert failed or pivots.min() < SMALLEST_PIVOT * pivots.max()


def test_dead_channels_and_an_outlier_channel():
    x = draw(100, 9)
    x[:, 4] = 0
    x[:, 7] *= 1e4
    found = whiten(summed(x))
    assert found.relative_ridge > 0 and torch.isfinite(found.root).all()
    inverse = torch.linalg.solve_triangular(found.root, torch.eye(9, dtype=torch.float64), upper=False)
    # cond(S) <= 1 / sqrt(SMALLEST_PIVOT) up to the size of the matrix
    torch.testing.assert_close(found.root @ inverse, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-8)


def test_hilbert_matrix_is_ill_conditioned_and_still_works():
    index = torch.arange(20, dtype=torch.float64)
    hilbert = 1 / (index[:, None] + index[None, :] + 1)
    found = whiten(hilbert)
    assert 0 < found.relative_ridge <= 1e-10
    assert rebuilt_error(found, hilbert) < 200 * EPS


def test_a_zero_covariance_leaves_the_weight_alone_to_decide():
    found = whiten(torch.zeros(5, 5, dtype=torch.float64))
    assert found.relative_ridge is None
    assert torch.equal(found.root, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_covariance_that_is_not_finite_is_refused(bad):
    c = torch.eye(4, dtype=torch.float64)
    c[1, 2] = bad
    with pytest.raises(CalibrationError, match="not finite; the model overflows"):
        whiten(c)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(CalibrationError, match="negative eigenvalues"):
        whiten(torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=torch.float64)))
