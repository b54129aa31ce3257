"""Quick products: the setting ends with the block, and their error is that of bfloat16 operands at most."""

from pathlib import Path

import pytest
import torch

from nxdi_svd_plugin import processor
from nxdi_svd_plugin.compress.calibrate.products import keep_operands, operand_dtype, quick_products

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fpu avx512f avx512_bf16", torch.bfloat16), ("fpu avx512f avx512_bf16x", torch.float32)]
)
def test_operands_are_bfloat16_inside_and_where_the_processor_multiplies_it(flags, dtype, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: f"flags\t\t: {flags} sse\n")
    fresh = processor.multiplies_bfloat16.__wrapped__  # not what an earlier test found
    monkeypatch.setattr("nxdi_svd_plugin.compress.calibrate.products.multiplies_bfloat16", fresh)
    with quick_products():
        assert operand_dtype(CPU) == dtype
        assert operand_dtype(torch.device("meta")) == torch.float32
    assert operand_dtype(CPU) == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_keeps_its_weight_in_bfloat16_and_the_rest_of_the_model_in_float32(bias):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LayerNorm(45), torch.nn.Sequential(torch.nn.Linear(45, 77, bias=bias)))
    x = torch.randn(9, 45, requires_grad=True)
    exact = model(x)
    wanted = torch.autograd.grad(exact.sum(), x)[0]
    weight = model[1][0].weight
    keep_operands(model, torch.bfloat16)
    found = model(x)
    back = torch.autograd.grad(found.sum(), x)[0]
    assert torch.equal(model[1][0].weight, weight.to(torch.bfloat16)) and model[0].weight.dtype == torch.float32
    assert found.dtype == back.dtype == torch.float32
    # three roundings of 2^-9 of what they round, which a sum of random signs adds up as their root: 1 % with room
    assert 1e-4 < float(((found - exact).norm() / exact.norm()).detach()) < 0.01
    assert 1e-4 < float((back - wanted).norm() / wanted.norm()) < 0.01
