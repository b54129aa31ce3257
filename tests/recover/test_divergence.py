"""The distillation loss against torch's own divergence in float64."""

import pytest
import torch
from torch.nn import functional

from nxdi_svd_plugin.recover.divergence import ROWS, divergence


def reference(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and its gradient by torch's kl_div in float64."""
    logits = logits.double().requires_grad_()
    distributions = logits.log_softmax(-1).flatten(0, -2), target.double().log_softmax(-1).flatten(0, -2)
    loss = functional.kl_div(*distributions, reduction="batchmean", log_target=True)
    loss.backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 64, 128), (1, ROWS["cpu"] - 1, 37), (3, ROWS["cpu"] + 5, 101), (1, 1, 3)])
def test_loss_and_gradient_are_those_of_torch(dtype, shape):
    generator = torch.Generator().manual_seed(1)
    logits, target = (4 * torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    expected, gradient = reference(logits, target)
    logits.requires_grad_()
    loss = divergence(logits, target)
    (0.3 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    positions = shape[0] * shape[1]
    # q and p, at most 1, of logarithms near 20 in float32; their difference rounded when kept and when scaled
    most = 2 * 20 * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps / 2
    assert (logits.grad.double() - 0.3 * gradient).abs().max() * positions <= 0.3 * most
    assert logits.grad.dtype == dtype


def test_equal_distributions_have_no_divergence_and_no_gradient():
    logits = torch.randn(2, 7, 50, generator=torch.Generator().manual_seed(2))
    moved = (logits + 5).requires_grad_()
    loss = divergence(moved, logits)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert moved.grad.abs().max() < 1e-6


def test_what_cannot_be_is_not_finite():
    logits = torch.randn(1, 4, 9)
    assert torch.isnan(divergence(logits * torch.nan, logits))
