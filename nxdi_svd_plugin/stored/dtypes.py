"""The number types of weights: the name that torch, numpy and config.json share, the safetensors code, the size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """One type. code: in a safetensors header. bytes: of one number."""

    code: str
    bytes: int


DTYPES = {"float32": Dtype("F32", 4), "bfloat16": Dtype("BF16", 2), "float16": Dtype("F16", 2)}
"""By name; nothing else is read or written."""
