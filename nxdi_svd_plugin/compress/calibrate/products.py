"""Float32 products at the speed of bfloat16, where the processor has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quick_products() -> Iterator[None]:
    """Inside, a product of float32 matrices may round its operands to bfloat16; its sums and its result stay float32.

    torch does so on processors with bfloat16 products (AVX512_BF16, AMX) and computes in float32 on others. A served
    model rounds its weights and activations in the same way. See torch.set_float32_matmul_precision, "medium".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
