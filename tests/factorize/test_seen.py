"""What the kept neurons contribute: exact for a diagonal, the identity without drops, positive semidefinite always."""

import torch

from nxdi_svd_plugin.factorize.seen import seen_by_kept


def problem(hidden=5, inner=14, seed=0):
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(hidden, inner, generator=gen, dtype=torch.float64)
    g = torch.randn(40, inner, generator=gen, dtype=torch.float64) * torch.linspace(0.1, 2, inner, dtype=torch.float64)
    return weight, g.T @ g / 40


def test_it_is_exact_where_neurons_are_uncorrelated():
    weight, far = problem()
    far, kept = far.diagonal().diag(), torch.tensor([0, 3, 4, 9, 11, 13])
    found = seen_by_kept(weight @ far @ weight.T, weight, far.diagonal(), kept)
    expected = weight[:, kept] @ far[kept][:, kept] @ weight[:, kept].T
    # the ridge of 1e-9
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))


def test_it_changes_nothing_where_nothing_is_dropped():
    weight, far = problem()
    projected = weight @ far @ weight.T
    assert torch.equal(seen_by_kept(projected, weight, far.diagonal(), torch.arange(14)), projected)


def test_it_is_a_covariance_and_nearer_than_that_of_all_neurons():
    """In the mean: the prior is wrong by what the gradients of 40 tokens are correlated."""
    ours, others = 0.0, 0.0
    for seed in range(20):
        weight, far = problem(seed=seed)
        kept = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10, 12, 13])
        projected = weight @ far @ weight.T
        exact = weight[:, kept] @ far[kept][:, kept] @ weight[:, kept].T
        found = seen_by_kept(projected, weight, far.diagonal(), kept)
        assert float(torch.linalg.eigvalsh(found)[0]) > -1e-9
        ours += float((found - exact).square().sum())
        others += float((projected - exact).square().sum())
    assert ours < 0.5 * others


def test_without_gradients_there_is_nothing_to_correct():
    weight, far = problem()
    assert float(seen_by_kept(0 * weight @ weight.T, weight, 0 * far.diagonal(), torch.arange(3)).abs().max()) == 0.0
    few = far.diagonal() * (torch.arange(14) < 2)  # C has rank 2 of 5
    assert torch.isfinite(seen_by_kept(weight @ few.diag() @ weight.T, weight, few, torch.arange(1, 14))).all()


def test_weights_of_zeros_where_there_are_gradients():
    """Half of the neurons have no weight, the other half no gradient."""
    weight, squares = torch.zeros(5, 8), torch.zeros(8)
    weight[:, :4], squares[4:] = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 1.0
    projected = torch.zeros(5, 5, dtype=torch.float64)
    assert torch.equal(seen_by_kept(projected, weight, squares, torch.arange(2, 7)), projected)
