"""Both Gram routes against numpy's float64 SVD of W S, and the discarded spectrum against the measured error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.factorize.svd import factor_by_input, factor_by_output
from nxdi_svd_plugin.factorize.whitening import SMALLEST_PIVOT, whiten

EPS = np.finfo(np.float64).eps
PAIRS = [(44, 90), (64, 128), (37, 37), (1, 9)]


def problem(out, inputs, tokens=400, seed=0):
    """Weight [out, in] and inputs [tokens, in] with unequal channel scales."""
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=gen, dtype=torch.float64) / inputs**0.5
    x = torch.randn(tokens, inputs, generator=gen, dtype=torch.float64)
    return weight, x * torch.linspace(0.1, 3, inputs, dtype=torch.float64)


def by_input(weight, x, rank):
    return factor_by_input(weight, whiten(x.T @ x), rank)


def by_output(weight, x, rank):
    y = x @ weight.T
    return factor_by_output(weight, y.T @ y, rank)


CASES = [(by_input, large, small) for small, large in PAIRS] + [(by_output, small, large) for small, large in PAIRS]
"""route, out, in: each route works in the smaller dimension."""


def measured(weight, x, factors):
    return float((x @ weight.T - x @ factors.u @ factors.v).square().sum())


def best(weight, x, rank):
    """Eq. 3 as written, in numpy: the best rank-r map on these inputs, [in, out], and the spectrum of W S."""
    w, inputs = weight.double().numpy(), x.double().numpy()
    s = np.linalg.cholesky(inputs.T @ inputs)
    left, sigma, right = np.linalg.svd(w @ s, full_matrices=False)
    return ((left[:, :rank] * sigma[:rank]) @ right[:rank] @ np.linalg.inv(s)).T, sigma**2


@pytest.mark.parametrize(("route", "out", "inputs"), CASES)
def test_both_routes_give_the_map_of_a_full_svd(route, out, inputs):
    weight, x = problem(out, inputs)
    full = min(out, inputs)
    for rank in {1, max(full // 2, 1), full}:
        expected, spectrum = best(weight, x, rank)
        factors = route(weight, x, rank)
        assert factors.u.shape == (inputs, rank) and factors.v.shape == (rank, out)
        # squaring to the Gram matrix costs half the digits of the small singular values: sqrt(eps) of the largest
        np.testing.assert_allclose(
            (factors.u @ factors.v).numpy(), expected, rtol=0, atol=1e-7 * np.abs(expected).max()
        )
        np.testing.assert_allclose(factors.spectrum[:full].numpy(), spectrum, rtol=0, atol=1e3 * EPS * spectrum[0])


def invertible(x):
    """Whether rounding alone made the covariance of too few tokens one that can be inverted to 1e-9: its Cholesky
    factor exists in numpy too, with squared pivots within SMALLEST_PIVOT of each other."""
    try:
        pivots = np.linalg.cholesky((x.T @ x).numpy()).diagonal() ** 2
    except np.linalg.LinAlgError:
        return False
    return pivots.min() >= 0.5 * SMALLEST_PIVOT * pivots.max()


@pytest.mark.parametrize("route", [by_input, by_output])
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 60), st.integers(0, 99))
def test_discarded_spectrum_is_the_measured_error_and_falls_with_the_rank(route, small, more, tokens, seed):
    """Any shape, with fewer tokens than channels too: then a ridge is reported and its share of the error is tiny."""
    out, inputs = (small + more, small) if route is by_input else (small, small + more)
    weight, x = problem(out, inputs, tokens, seed)
    energy = float((x @ weight.T).square().sum())
    errors = []
    for rank in range(1, min(out, inputs) + 1):
        factors = route(weight, x, rank)
        assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
        errors.append(measured(weight, x, factors))
        assert errors[-1] == pytest.approx(factors.discarded, rel=1e-6, abs=1e-8 * energy)
        assert factors.relative_error == pytest.approx((factors.discarded / energy) ** 0.5, rel=1e-6, abs=1e-4)
        assert factors.relative_ridge is not None and factors.relative_ridge <= 1e-9
        if tokens < inputs:
            assert route is by_output or factors.relative_ridge > 0 or invertible(x)
    assert all(a >= b - 1e-8 * energy for a, b in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize(("route", "out", "inputs"), CASES)
@pytest.mark.parametrize("tokens", [2, 400])
def test_exact_at_full_rank_even_with_two_tokens(route, out, inputs, tokens):
    weight, x = problem(out, inputs, tokens)
    factors = route(weight, x, min(out, inputs))
    # inverting S costs cond(S) <= 3e6 of eps; the split of Sigma another 1e6 at most in vanishing directions
    torch.testing.assert_close((factors.u @ factors.v).T, weight, rtol=0, atol=1e-7 * float(weight.abs().max()))


@pytest.mark.parametrize("route", [by_input, by_output])
def test_sigma_is_split_evenly_between_the_factors(route):
    """Eq. 6-8: the whitened input factor and the output factor carry Sigma^1/2 each."""
    weight, x = problem(*((40, 20) if route is by_input else (20, 40)))
    factors = route(weight, x, 7)
    sigma = factors.spectrum[:7].sqrt()
    whitened = torch.linalg.cholesky(x.T @ x).T @ factors.u
    torch.testing.assert_close(whitened.T @ whitened, torch.diag(sigma), rtol=0, atol=1e-8 * float(sigma[0]))
    torch.testing.assert_close(factors.v @ factors.v.T, torch.diag(sigma), rtol=0, atol=1e-8 * float(sigma[0]))


def test_better_on_its_text_than_plain_truncation():
    weight, x = problem(60, 30)
    left, sigma, right = torch.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :8] * sigma[:8]) @ right[:8]
    assert measured(weight, x, by_input(weight, x, 8)) < 0.95 * float((x @ (weight - plain).T).square().sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_any_dtype_are_factored_in_float64(dtype):
    weight, x = problem(30, 12)
    low = weight.to(dtype)
    factors = by_input(low, x, 12)
    assert factors.u.dtype == factors.v.dtype == torch.float64
    torch.testing.assert_close((factors.u @ factors.v).T, low.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", [by_input, by_output])
def test_dead_and_huge_channels_and_a_rank_deficient_weight(route):
    weight, x = problem(*((50, 20) if route is by_input else (20, 50)))
    x[:, 3] = 0
    x[:, 5] *= 1e5
    weight[:, 8] = weight[:, 9]
    for rank in (1, 10, 20):
        factors = route(weight, x, rank)
        assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
    energy = float((x @ weight.T).square().sum())
    assert measured(weight, x, factors) <= 1e-10 * energy


def test_silent_inputs_leave_the_weight_alone_to_decide():
    weight, x = problem(30, 12)
    silent = torch.zeros_like(x)
    for factors in (by_input(weight, silent, 5), by_output(weight.T.contiguous(), x[:, :1] * torch.zeros(30), 5)):
        assert factors.relative_ridge is None
        shaped = weight if factors.v.shape[1] == 30 else weight.T
        wanted = torch.linalg.svdvals(shaped)[5:].square().sum()
        assert float((shaped - (factors.u @ factors.v).T).square().sum()) == pytest.approx(float(wanted), rel=1e-9)
        assert factors.discarded == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("route", [by_input, by_output])
def test_a_zero_weight_gives_zero_maps_not_nan(route):
    weight, x = problem(*((14, 6) if route is by_input else (6, 14)))
    factors = route(torch.zeros_like(weight), x, 3)
    assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
    assert not (factors.u @ factors.v).any() and factors.relative_error == 0


def test_output_statistics_that_are_not_finite_are_refused():
    with pytest.raises(CalibrationError, match="calibration outputs is not finite"):
        factor_by_output(torch.ones(2, 3), torch.full((2, 2), float("nan"), dtype=torch.float64), 1)
