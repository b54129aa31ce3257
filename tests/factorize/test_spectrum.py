"""Two-sided whitening: the predicted loss is the quadratic form, optimal, and exact from H x H statistics alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.spectrum import damp, projector, spectrum, truncate, truncate_turned


def problem(hidden, inner, tokens, seed=0):
    """W [H, I], near-side vectors x [T, H] and far-side vectors g [T, I], with unequal scales on both sides."""
    gen = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
    weight = draw(hidden, inner)
    near = draw(tokens, hidden) * torch.linspace(0.1, 3, hidden, dtype=torch.float64)
    far = draw(tokens, inner) * torch.linspace(2, 0.2, inner, dtype=torch.float64)
    return weight, near.T @ near / tokens, far, far.T @ far / tokens


def fit(weight, near, far_vectors, far, damping):
    projected = (weight @ far_vectors.T) @ (weight @ far_vectors.T).T / len(far_vectors)
    mean = float(far.diagonal().mean())
    return spectrum(near, projected, weight @ weight.T, mean, damping)


def output_error(spec, rank, near, far):
    """W - W' = u g W with the projector on what was dropped."""
    u, g = projector(spec, spec.basis[:, rank:])
    dropped, whole = float(((u.T @ near @ u) * (g @ far @ g.T)).sum()), float((near * far).sum())
    return (max(dropped, 0) / whole) ** 0.5


@pytest.mark.parametrize(("hidden", "inner"), [(31, 9), (16, 15), (7, 1)])
def test_a_narrow_matrix_is_the_same_problem_turned(hidden, inner):
    """The spectrum of the I x I side gives the matrix, the energies and the whitened coordinates of the H x H one."""
    weight, near, far_vectors, far = problem(hidden, inner, 200)
    wide = fit(weight, near, far_vectors, far, 1e-3)
    mean = float(near.diagonal().mean())
    turned = spectrum(far, weight.T @ near @ weight, weight.T @ weight, mean, 1e-3)
    size = float(wide.energy[0])
    torch.testing.assert_close(turned.energy, wide.energy[:inner], rtol=0, atol=1e-9 * size)
    for rank in range(1, inner + 1):
        (u, v), (a, b) = truncate(weight, wide, rank), truncate_turned(weight, turned, rank)
        # the eigenvectors of a gap of 1e-3 turn by 1e-9 / 1e-3
        torch.testing.assert_close(a @ b, u @ v, rtol=0, atol=1e-6 * float(weight.abs().max()))
        torch.testing.assert_close(b.T @ b, v.T @ v, rtol=0, atol=1e-6 * float((v.T @ v).abs().max()))


def test_energies_alone_are_those_of_the_whole_spectrum():
    """LAPACK's two routines differ by rounding, of the largest."""
    weight, near, far_vectors, far = problem(31, 40, 200)
    projected, mean = (weight @ far_vectors.T) @ (weight @ far_vectors.T).T / 200, float(far.diagonal().mean())
    whole, alone = (spectrum(near, projected, weight @ weight.T, mean, 0.1, vectors=v) for v in (True, False))
    assert alone.basis.shape == (31, 0)
    torch.testing.assert_close(alone.energy, whole.energy, rtol=0, atol=31 * 2.0**-52 * float(whole.energy[0]))


def test_a_narrow_matrix_that_loses_nothing_is_cut_all_the_same():
    weight, near, _, far = problem(12, 5, 50)
    dead = spectrum(far, 0 * (weight.T @ weight), weight.T @ weight, 0.0, 0.1)
    assert float(dead.energy.sum()) == 0.0
    u, v = truncate_turned(weight, dead, 5)
    torch.testing.assert_close(u @ v, weight, rtol=0, atol=1e-10 * float(weight.abs().max()))  # cond(far) < 1e3


def quadratic(delta, near, far):
    return 0.5 * float(torch.trace(near @ delta @ far @ delta.T))


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 12), st.integers(3, 30), st.sampled_from([1e-6, 1e-2, 1.0]), st.integers(0, 99))
def test_predicted_loss_is_the_damped_quadratic_form(hidden, inner, damping, seed):
    weight, near, far_vectors, far = problem(hidden, inner, 50, seed)
    spec = fit(weight, near, far_vectors, far, damping)
    near_d = near + spec.ridge * torch.eye(hidden, dtype=torch.float64)
    far_d = far + spec.far_ridge * torch.eye(inner, dtype=torch.float64)
    losses = []
    for rank in range(hidden + 1):
        u, v = truncate(weight, spec, rank)
        losses.append(quadratic(weight - u @ v, near_d, far_d))
        # eigenvalues of K carry rounding of order eps * max; the ridge bounds the condition of S by 1 / damping
        assert losses[-1] == pytest.approx(spec.loss(rank), rel=1e-6, abs=1e-9 * spec.loss(0))
    assert all(a >= b - 1e-9 * losses[0] for a, b in zip(losses, losses[1:], strict=False))


def test_optimal_against_the_svd_of_the_doubly_whitened_weight():
    """An independent route with both Cholesky factors: W' = S_C^-T [S_C^T W S_G]_r S_G^-1."""
    weight, near, far_vectors, far = problem(9, 31, 200)
    spec = fit(weight, near, far_vectors, far, 1e-9)
    s_c, s_g = torch.linalg.cholesky(near), torch.linalg.cholesky(far)
    u, s, vh = torch.linalg.svd(s_c.T @ weight @ s_g, full_matrices=False)
    middle = (u[:, :4] * s[:4]) @ vh[:4]
    expected = torch.linalg.solve(s_c.T, middle) @ torch.linalg.inv(s_g)
    left, right = truncate(weight, spec, 4)
    torch.testing.assert_close(left @ right, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(spec.energy, s.square(), rtol=1e-6, atol=1e-6 * float(s[0] ** 2))


def test_a_better_fit_than_input_whitening_in_its_own_measure_only():
    weight, near, far_vectors, far = problem(16, 48, 400)
    two = fit(weight, near, far_vectors, far, 1e-9)
    one = spectrum(near, weight @ weight.T, weight @ weight.T, 1e-12, 1e-9)
    errors = {}
    for name, spec in (("two", two), ("one", one)):
        u, v = truncate(weight, spec, 6)
        delta = weight - u @ v
        errors[name] = (quadratic(delta, near, far), quadratic(delta, near, torch.eye(48, dtype=torch.float64)))
    assert errors["two"][0] < errors["one"][0] and errors["two"][1] > errors["one"][1]


@pytest.mark.parametrize("damping", [1e-9, 0.1])
def test_output_error_is_that_of_the_outputs_not_of_the_objective(damping):
    """Against the outputs themselves, for a projection that reads the near side and for one that writes it."""
    gen = torch.Generator().manual_seed(3)
    weight, near, far_vectors, far = problem(16, 48, 400)
    x = torch.randn(400, 16, generator=gen, dtype=torch.float64)
    spec = fit(weight, near, far_vectors, far, damping)
    u, v = truncate(weight, spec, 6)
    read = float((x @ (weight - u @ v)).norm() / (x @ weight).norm())
    assert output_error(spec, 6, x.T @ x / 400, weight @ weight.T) == pytest.approx(read, rel=1e-9)
    h = torch.randn(400, 48, generator=gen, dtype=torch.float64)
    y = h @ weight.T
    written = float((h @ (weight - u @ v).T).norm() / y.norm())
    eye = torch.eye(16, dtype=torch.float64)
    assert output_error(spec, 6, eye, y.T @ y / 400) == pytest.approx(written, rel=1e-9)
    assert output_error(spec, 16, eye, y.T @ y / 400) < 1e-6 < written


@pytest.mark.parametrize("damping", [1e-9, 0.1])
@pytest.mark.parametrize("nothing", ["", "near", "far"])
def test_a_side_without_signal_has_no_energy(damping, nothing):
    weight, near, far_vectors, far = problem(16, 48, 400)
    near = 0 * near if nothing == "near" else near
    trace = 0.0 if nothing == "far" else float(far.diagonal().mean())
    projected = (weight @ far_vectors.T) @ (weight @ far_vectors.T).T / 400 * (trace > 0)
    energy = spectrum(near, projected, weight @ weight.T, trace, damping).energy
    assert bool((energy == 0).all()) == bool(nothing)


def test_few_tokens_and_dead_channels_give_finite_factors():
    weight, _, far_vectors, far = problem(12, 20, 5)
    near = torch.zeros(12, 12, dtype=torch.float64)
    near[:3, :3] = 2.0  # rank one, nine dead channels
    spec = fit(weight, near, far_vectors, far, 1e-8)
    u, v = truncate(weight, spec, 12)
    assert torch.isfinite(u).all() and torch.isfinite(v).all() and spec.ridge > 0
    torch.testing.assert_close(u @ v, weight, rtol=0, atol=1e-6)


def test_zero_gradients_fall_back_to_the_identity_and_cost_nothing():
    weight, near, _, _ = problem(8, 12, 30)
    zero = torch.zeros(8, 8, dtype=torch.float64)
    spec = spectrum(near, zero, weight @ weight.T, 0.0, 1e-2)
    assert spec.far_ridge == 1.0 and spec.loss(0) == 0.0
    dead = spectrum(zero, weight @ weight.T, weight @ weight.T, 1.0, 1e-2)
    assert dead.ridge == 1.0 and dead.loss(0) == 0.0
    u, v = truncate(weight, dead, 3)
    best = torch.linalg.svdvals(weight)[3:].square().sum()
    assert float((weight - u @ v).square().sum()) == pytest.approx(float(best), rel=1e-9)


def test_the_ridge_grows_until_it_works_and_nan_is_refused():
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))
    root, ridge = damp(indefinite, 1e-6)
    assert ridge > 1e-3 and torch.isfinite(root).all()
    with pytest.raises(SvdError, match="non-finite"):
        damp(torch.full((2, 2), float("nan"), dtype=torch.float64), 1e-3)
