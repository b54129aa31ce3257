"""Eq. 4 and 5: ranks from a compression ratio, and the ratio that ranks reach."""

from __future__ import annotations

import math

from nxdi_svd_plugin.errors import RecipeError


def block_rank(ratio: float, m: int, n: int, block: int, tau: float = 0.5) -> int:
    """Eq. 5: r = b * floor((1 - ratio) m n / ((m + n) b) + 1 - tau), the multiple of the block that meets the ratio.

    Args:
        ratio: share of the m * n parameters to save, in (0, 1).
        m, n: the two dimensions of the weight.
        block: b; ranks are its multiples.
        tau: rounding threshold in (0, 1]: 0.5 rounds to the nearest multiple, 1 down, near 0 up.
    Raises:
        RecipeError: the block is larger than the matrix, or no multiple of it saves anything.
    """
    check_block(block, m, n)
    rank = block * math.floor((1 - ratio) * m * n / ((m + n) * block) + 1 - tau)
    if rank < 1:
        raise RecipeError(
            f"ratio {ratio:.4g} with block {block} rounds to rank 0 for a {m} x {n} matrix; "
            "use a smaller block or ratio"
        )
    if rank * (m + n) >= m * n:
        raise RecipeError(
            f"ratio {ratio:.4g} with block {block} rounds to rank {rank}, which saves nothing of a {m} x {n} matrix "
            f"(break-even is {m * n / (m + n):.0f}); use a smaller block, a larger tau or a larger ratio"
        )
    return rank


def check_block(block: int, m: int, n: int) -> None:
    """Raises RecipeError for a block that is larger than an m x n matrix."""
    if block > min(m, n):
        raise RecipeError(
            f"block {block} is larger than the smaller side of a {m} x {n} matrix; use a block of at most {min(m, n)}"
        )


def break_even(m: int, n: int) -> float:
    """The rank m n / (m + n) at which u and v hold as many numbers as the weight."""
    return m * n / (m + n)


def ratio(dense_parameters: int, compressed_parameters: int) -> float:
    """Eq. 4: 1 - P' / P."""
    return 1 - compressed_parameters / dense_parameters
