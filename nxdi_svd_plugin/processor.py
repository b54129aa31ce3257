"""What the host's processor multiplies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""What /proc/cpuinfo calls products of bfloat16 with float32 sums: of AMD and Intel, of Intel, of Arm."""


@cache
def multiplies_bfloat16() -> bool:
    """Whether Linux says that this processor has such products."""
    path = Path("/proc/cpuinfo")
    return path.exists() and not BFLOAT16.isdisjoint(path.read_text().split())
