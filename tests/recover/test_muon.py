"""Muon against numpy's singular values, against torch's own where there is one, and its scale."""

import numpy as np
import pytest
import torch

from nxdi_svd_plugin.recover.muon import MOMENTUM, Muon, orthogonal

SHAPES = [(48, 96), (130, 33), (1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_values_come_near_one_and_the_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    assert s.min() > 1e-2 * np.linalg.norm(s)  # what the iteration brings up to 0.7 at least
    found = u.T @ orthogonal(matrix).double().numpy() @ vt.T
    assert np.all((np.diag(found) > 0.65) & (np.diag(found) < 1.25))
    # five products in bfloat16 leave a few parts in a hundred beside the diagonal
    assert np.abs(found - np.diag(np.diag(found))).max() < 0.05


def test_zero_stays_zero():
    assert not orthogonal(torch.zeros(3, 5)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch(shape):
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.nn.Parameter(torch.full(shape, 0.5)) for _ in range(2))
    here = Muon([ours], 1e-2)
    there = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        here.step()
        there.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6) and not torch.allclose(ours, torch.tensor(0.5), atol=1e-3)


def test_a_parameter_without_a_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    Muon([parameter], 1.0).step()
    assert torch.equal(parameter, torch.ones(2, 3))
