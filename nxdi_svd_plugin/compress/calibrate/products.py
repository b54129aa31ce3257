"""Products of the calibration at the speed of the processor's matrix instructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from nxdi_svd_plugin.processor import multiplies_bfloat16


@contextmanager
def quick_products() -> Iterator[None]:
    """Inside, a product of float32 matrices may round its operands to bfloat16; its sums and its result stay float32.

    A served model rounds its weights and activations in the same way. Where torch then rounds and where it only takes
    a faster library depends on the processor: torch.set_float32_matmul_precision, "medium".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def operand_dtype(device: torch.device) -> torch.dtype:
    """In which dtype a product keeps its operands: bfloat16 inside `quick_products` on a processor that multiplies it,
    otherwise float32."""
    quick = torch.get_float32_matmul_precision() == "medium" and device.type == "cpu" and multiplies_bfloat16()
    return torch.bfloat16 if quick else torch.float32


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] @ weight [n, m] in the dtype of x: of rounded operands with float32 sums and, where the weight is
    bfloat16, a rounded result."""
    return (x.to(weight.dtype) @ weight).to(x.dtype)


class Product(nn.Module):
    """`product` with the weight of a linear layer that keeps it in another dtype than its inputs have."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b in the dtype of x."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def keep_operands(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every linear layer its weight in `dtype` and let it compute with that; all else stays as it is."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Product(linear.to(dtype)))
