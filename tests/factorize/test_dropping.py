"""Dropping neurons: order and losses against brute force, the refit against numpy's least squares, degenerate cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.compress.plan.widths import widths
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.dropping import eliminate, fitted_loss, kept_shares, precision, refit

DAMPING = 0.1


def problem(inner=12, hidden=5, tokens=60, seed=0):
    """z [T, I] with correlated neurons of unequal sizes, W [I, H], E[z z^T] and the covariance of the gradients."""
    gen = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
    z = draw(tokens, inner) @ (torch.eye(inner, dtype=torch.float64) + 0.4 * draw(inner, inner) / inner**0.5)
    z *= torch.linspace(0.3, 2, inner, dtype=torch.float64)[torch.randperm(inner, generator=gen)]
    g = draw(tokens, hidden) * torch.linspace(0.5, 2, hidden, dtype=torch.float64)
    return z, draw(inner, hidden), z.T @ z / tokens, g.T @ g / tokens


def ridged(covariance):
    a = covariance.numpy()
    return a + DAMPING * a.diagonal().mean() * np.eye(len(a))


def exact_loss(inner, gradients, weight, kept):
    """1/2 tr((W - W')^T A (W - W') G) at its minimum, by normal equations, in numpy."""
    a, g, w = ridged(inner), ridged(gradients), weight.numpy()
    left = np.zeros_like(w)
    left[kept] = np.linalg.solve(a[np.ix_(kept, kept)], a[kept] @ w) if len(kept) else 0.0
    return 0.5 * np.trace((w - left).T @ a @ (w - left) @ g)


def blocks(inner, groups):
    """The covariance without what the slices have to do with each other."""
    return inner * torch.block_diag(*[torch.ones(len(inner) // groups, len(inner) // groups)] * groups)


def together(inner, gradients, weight, order, stages, groups):
    """What fitting the slices together leaves of the losses, at the middle stage."""
    gone = order[: stages[0] - stages[len(stages) // 2]].tolist()
    kept = sorted(set(range(len(weight))) - set(gone))
    return exact_loss(inner, gradients, weight, kept) / exact_loss(blocks(inner, groups), gradients, weight, kept)


@pytest.mark.parametrize(("inner", "hidden", "groups"), [(12, 5, 1), (7, 11, 1), (12, 3, 3), (10, 4, 2)])
def test_one_at_a_time_is_greedy_brute_force(inner, hidden, groups):
    _, weight, a, g = problem(inner, hidden)
    stages = list(range(inner, 0, -groups))
    found = eliminate(a.clone(), g, weight, stages, groups, DAMPING, at_once=1)
    kept, part, sliced = list(range(inner)), inner // groups, blocks(a, groups)
    share = together(a, g, weight, found.order, stages, groups)
    for step, (neuron, loss) in enumerate(zip(found.order.tolist(), found.losses.tolist(), strict=True)):
        own = [i for i in kept if i // part == step % groups]  # a stage: every slice loses one
        each = {i: exact_loss(sliced, g, weight, [k for k in kept if k != i]) for i in own}
        assert neuron == min(each, key=each.get)
        # float64 through an inverse of condition below 1e3
        assert loss == pytest.approx(share * each[neuron], rel=1e-9)
        kept.remove(neuron)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_batches_have_the_exact_loss_of_what_they_drop(seed, at_once, groups):
    _, weight, a, g = problem(16, 6, seed=seed)
    stages = [16, 12, 4]
    found = eliminate(a.clone(), g, weight, stages, groups, DAMPING, at_once)
    assert len(set(found.order.tolist())) == 12
    share = together(a, g, weight, found.order, stages, groups)
    for gone in range(1, 13):
        kept = sorted(set(range(16)) - set(found.order[:gone].tolist()))
        expected = share * exact_loss(blocks(a, groups), g, weight, kept)
        assert float(found.losses[gone - 1]) == pytest.approx(expected, rel=1e-9)
    for stage in stages[1:]:
        lost = (found.order[: 16 - stage] // (16 // groups)).bincount(minlength=groups)
        assert lost.tolist() == [(16 - stage) // groups] * groups


def test_what_slices_have_in_common_is_measured_on_a_few_probes():
    """On 96 columns of M, whose quadratic forms 64 probes know to a few percent each, and their ratio better."""
    _, weight, a, g = problem(24, 96)
    stages = [24, 16, 8]
    found = eliminate(a.clone(), g, weight, stages, 2, DAMPING)
    expected = exact_loss(a, g, weight, sorted(set(range(24)) - set(found.order[:8].tolist())))
    assert float(found.losses[7]) == pytest.approx(expected, rel=0.03)
    assert abs(together(a, g, weight, found.order, stages, 2) - 1) > 0.06


def test_the_refit_is_numpys_least_squares():
    """Ridge towards W: rows sqrt(ridge) I below the tokens, with W's own as their targets."""
    z, weight, a, _ = problem(9, 4)
    kept = torch.tensor([0, 3, 4, 8])
    ridge = np.sqrt(DAMPING * float(a.diagonal().mean()) * len(z))
    rows = np.vstack([z.numpy(), ridge * np.eye(9)])
    expected = np.linalg.lstsq(rows[:, kept.numpy()], rows @ weight.numpy(), rcond=None)[0]
    found = refit(a, weight, kept, DAMPING)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(refit(len(z) * a, weight, kept, DAMPING), found, rtol=1e-9, atol=1e-12)


def test_the_loss_is_that_of_what_was_fitted():
    _, weight, a, g = problem(9, 4)
    kept = torch.tensor([0, 3, 4, 8])
    found = fitted_loss(a, g, weight, kept, refit(a, weight, kept, DAMPING), DAMPING)
    assert found == pytest.approx(exact_loss(a, g, weight, kept.tolist()), rel=1e-9)
    assert fitted_loss(a, g, weight, torch.arange(9), weight, DAMPING) == 0.0


def test_the_equations_are_solved_in_panels_too(monkeypatch):
    _, weight, a, g = problem(23, 4)
    kept = torch.tensor([i for i in range(23) if i % 5])
    whole, order = refit(a, weight, kept, DAMPING), eliminate(a.clone(), g, weight, [23, 10], 1, DAMPING).order
    monkeypatch.setattr("nxdi_svd_plugin.factorize.dropping.ROWS", 4)
    torch.testing.assert_close(refit(a, weight, kept, DAMPING), whole, rtol=1e-10, atol=1e-13)
    assert torch.equal(eliminate(a.clone(), g, weight, [23, 10], 1, DAMPING).order, order)


def test_single_precision_is_within_what_is_promised():
    """And in an order of its own only where two neurons cost the same to that precision."""
    _, weight, a, g = problem(64, 9, tokens=200)
    assert precision(64, DAMPING) == torch.float32
    exact, found = (eliminate(x, g, weight, [64, 32, 16], 1, DAMPING) for x in (a.clone(), a.to(torch.float32)))
    torch.testing.assert_close(found.losses, exact.losses, rtol=2e-2, atol=0)
    for gone in (32, 48):
        kept = sorted(set(range(64)) - set(found.order[:gone].tolist()))
        assert float(found.losses[gone - 1]) == pytest.approx(exact_loss(a, g, weight, kept), rel=2e-2)
    kept = torch.arange(0, 64, 2)
    expected = refit(a, weight, kept, DAMPING)
    torch.testing.assert_close(
        refit(a.to(torch.float32), weight, kept, DAMPING).double(), expected, rtol=0, atol=2e-2 * float(expected.norm())
    )


@pytest.mark.parametrize(
    ("neurons", "damping", "expected"),
    [(14336, 0.1, torch.float32), (28672, 0.05, torch.float64), (1536, 0.1, torch.float32), (64, 1e-9, torch.float64)],
)
def test_precision_follows_the_largest_condition_number(neurons, damping, expected):
    assert precision(neurons, damping) == expected


@pytest.mark.parametrize("updates", [1, 3, 40])
def test_when_the_inverse_is_brought_up_to_date_changes_nothing(updates, monkeypatch):
    _, weight, a, g = problem(40, 6)
    monkeypatch.setattr("nxdi_svd_plugin.factorize.dropping.ROWS", 7)
    stages = list(range(40, 9, -2))
    expected = eliminate(a.clone(), g, weight, stages, 2, DAMPING)
    monkeypatch.setattr("nxdi_svd_plugin.factorize.dropping.UPDATES", updates)
    found = eliminate(a.clone(), g, weight, stages, 2, DAMPING)
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-10, atol=0)


def test_dropping_nothing_changes_nothing():
    _, weight, a, g = problem()
    found = eliminate(a.clone(), g, weight, [12], 1, DAMPING)
    assert len(found.order) == len(found.losses) == 0
    assert torch.equal(refit(a, weight, torch.arange(12), DAMPING), weight)


def test_dead_neurons_go_first_and_change_no_other():
    _, weight, a, g = problem()
    dead = torch.tensor([2, 7])
    a[dead], a[:, dead] = 0.0, 0.0
    weight[dead] *= 1e-3
    found = eliminate(a.clone(), g, weight, [12, 10], 1, DAMPING)
    assert sorted(found.order.tolist()) == [2, 7]
    kept = torch.tensor([i for i in range(12) if i not in (2, 7)])
    torch.testing.assert_close(refit(a, weight, kept, DAMPING), weight[kept], rtol=1e-12, atol=1e-12)


def test_a_copy_of_a_neuron_goes_without_loss():
    """Without damping to speak of, its twin takes its weights over."""
    z, weight, _, g = problem(8, 3)
    z[:, 5] = z[:, 1]
    a = z.T @ z / len(z)
    found = eliminate(a.clone(), g, weight, [8, 7], 1, 1e-9)
    assert found.order.tolist() in ([1], [5])
    assert float(found.losses[0]) < 1e-6 * exact_loss(a, g, weight, list(range(7)))
    kept = torch.tensor([i for i in range(8) if i != int(found.order[0])])
    output = z[:, kept] @ refit(a, weight, kept, 1e-9)
    torch.testing.assert_close(output, z @ weight, rtol=0, atol=1e-6 * float((z @ weight).abs().max()))


@pytest.mark.parametrize("silent", ["inner", "gradients"])
def test_without_a_signal_nothing_is_lost(silent):
    _, weight, a, g = problem()
    {"inner": a, "gradients": g}[silent].zero_()
    found = eliminate(a.clone(), g, weight, [12, 6], 2, DAMPING)
    assert len(set(found.order.tolist())) == 6 and float(found.losses.abs().max()) == 0.0
    assert torch.isfinite(refit(a, weight, torch.arange(3), DAMPING)).all()


def test_fewer_tokens_than_neurons_are_damped():
    _, weight, a, g = problem(20, 6, tokens=3)
    found = eliminate(a.clone(), g, weight, [20, 10, 5], 1, DAMPING, at_once=1)
    kept = sorted(set(range(20)) - set(found.order.tolist()))
    assert float(found.losses[-1]) == pytest.approx(exact_loss(a, g, weight, kept), rel=1e-8)
    assert torch.isfinite(refit(a, weight, torch.tensor(kept), DAMPING)).all()


def test_what_is_not_finite_or_no_covariance_is_refused():
    _, weight, a, g = problem()
    with pytest.raises(SvdError, match="not finite"):
        eliminate(torch.full_like(a, torch.nan), g, weight, [12, 6], 1, DAMPING)
    with pytest.raises(SvdError, match="not positive definite; raise damping"):
        eliminate(a - 2 * a.diagonal().max() * torch.eye(12, dtype=a.dtype), g, weight, [12, 6], 1, DAMPING)
    with pytest.raises(SvdError, match="not positive definite; raise damping"):
        refit(torch.full_like(a, torch.nan), weight, torch.arange(5), DAMPING)


def test_widths_are_multiples_of_a_step_or_all():
    assert widths(1536, 256, 384) == [1536, 1280, 1024, 768, 512]
    assert widths(90, 4, 80) == [90, 88, 84, 80]
    assert widths(90, 100, 1) == [90]


def test_shares_are_exact_where_the_far_side_is_uncorrelated():
    _, weight, a, g = problem()
    order, stages, squares = torch.tensor([3, 0, 7, 11]), [12, 10, 8], a.diagonal()
    found = kept_shares(weight.T, g, squares, order, stages)
    for share, width in zip(found, stages, strict=True):
        kept = sorted(set(range(12)) - set(order[: 12 - width].tolist()))
        left, whole = (w.T @ squares[k].diag() @ w for w, k in ((weight[kept], kept), (weight, range(12))))
        assert share == pytest.approx(float(torch.trace(g @ left) / torch.trace(g @ whole)), rel=1e-12)
    assert kept_shares(weight.T, g, 0 * squares, order, stages) == [1.0, 1.0, 1.0]
