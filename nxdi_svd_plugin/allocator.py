"""Freed memory kept for the next layer or step: the same blocks come and go."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc's malloc.h
KEPT = 512 << 20  # freed bytes that may stay with the process
LARGEST = 32 << 20  # a larger block goes back at once; glibc's own upper limit


def keep_freed_blocks() -> None:
    """Let glibc's malloc keep freed blocks, which it would give back to the kernel and get again page by page.

    Nothing happens where the C library is another one, or where the environment already says how malloc shall behave
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES). Source: mallopt(3).
    """
    asked = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ)
    if asked or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP, LARGEST)
        mallopt(TRIM, KEPT)
