"""Quick products: the setting ends with the block, and their error is that of bfloat16 operands at most."""

import pytest
import torch

from nxdi_svd_plugin.compress.calibrate.products import quick_products


def test_the_setting_ends_with_the_block():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), quick_products():
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_sums_and_results_stay_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(33, 4099, generator=generator), torch.rand(4099, 21, generator=generator)
    with quick_products():
        found = a @ b
    exact = a.double() @ b.double()
    # each operand is rounded by at most 2^-8 of itself and float32 sums add 4099 * 2^-24; a bfloat16 sum of 4,099
    # positive terms would stop growing near 512, half of the result
    assert found.dtype == torch.float32
    assert float(((found - exact) / exact).abs().max()) < 2 * 2**-8 + 4099 * 2**-24
    # roundings of 4,099 terms are independent: their mean is far below the bound, a rounded result's would not be
    assert float(((found - exact) / exact).abs().mean()) < 2**-11
