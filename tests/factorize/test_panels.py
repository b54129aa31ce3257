"""Products by panels are those of the whole matrices."""

import pytest
import torch

from nxdi_svd_plugin.factorize.panels import PANEL, add_lower, mirror, symmetric, times_lower, times_lower_transposed


@pytest.mark.parametrize("size", [1, 7, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_panels_give_the_whole_product(size, dtype):
    """Against float64 without panels; a sum of n products rounds to n eps of the sum of their sizes at most."""
    generator = torch.Generator().manual_seed(size)
    x, lower = torch.randn(5, size, generator=generator), torch.randn(size, size, generator=generator).tril()
    many = torch.randn(9, size, generator=generator)
    x, lower, many = x.to(dtype), lower.to(dtype), many.to(dtype)
    for found, left, right in (
        (times_lower(x, lower), x, lower),
        (times_lower_transposed(x, lower), x, lower.T),
        (symmetric(many, many), many.T, many),
    ):
        wanted = left.double() @ right.double()
        bound = (left.shape[1] * torch.finfo(dtype).eps) * (left.double().abs() @ right.double().abs())
        assert found.dtype == dtype and bool(((found.double() - wanted).abs() <= bound).all())


def test_a_symmetric_product_is_symmetric_to_the_last_bit():
    """x^T (A x) with A symmetric, of two panels and a rest."""
    generator = torch.Generator().manual_seed(0)
    size = 2 * PANEL + 30
    a, x = torch.randn(40, 40, generator=generator), torch.randn(40, size, generator=generator)
    product = symmetric(x, (a + a.T) @ x)
    total = torch.zeros(size, size, dtype=torch.float64)
    add_lower(total, x)
    add_lower(total, 2 * x)
    mirror(total)
    assert torch.equal(total, total.T)
    torch.testing.assert_close(total, 5 * (x.T @ x).double(), rtol=0, atol=1e-4 * float(total.max()))
    assert torch.equal(product, product.T)
    torch.testing.assert_close(product, x.T @ (a + a.T) @ x, rtol=0, atol=1e-4 * float(product.abs().max()))
