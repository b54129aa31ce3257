"""Eq. 4 and 5: ranks from a compression ratio, and the ratio that ranks reach."""

from __future__ import annotations

from collections.abc import Callable

from nxdi_svd_plugin.errors import RecipeError

Cost = Callable[[int, int, float], float]
"""Numbers stored for a matrix with sides m, n at a rank; rising from 0 to min(m, n)."""


def block_rank(ratio: float, m: int, n: int, block: int, tau: float, cost: Cost) -> int:
    """Eq. 5 for any form: r = b floor(x / b + 1 - tau), where cost(m, n, x) = (1 - ratio) m n.

    As the cost rises, r / b is the largest k with cost(b (k - 1 + tau)) <= (1 - ratio) m n, so no form needs to solve
    for x. With the pair's cost x (m + n) it is the paper's Eq. 5.

    Args:
        ratio: share of the m * n parameters to save, in (0, 1).
        m, n: the two dimensions of the weight.
        block: b; ranks are its multiples.
        tau: rounding threshold in (0, 1]: 0.5 rounds to the nearest multiple, 1 down, near 0 up.
        cost: of the form.
    Raises:
        RecipeError: the block is larger than the matrix, or no multiple of it below full rank saves anything.
    """
    check_block(block, m, n)
    kept, blocks = (1 - ratio) * m * n, 0
    while block * (blocks + tau) < min(m, n) and cost(m, n, block * (blocks + tau)) <= kept:
        blocks += 1
    rank = block * blocks
    if rank < 1:
        raise RecipeError(
            f"ratio {ratio:.4g} with block {block} rounds to rank 0 for a {m} x {n} matrix; "
            "use a smaller block or ratio"
        )
    if rank > min(m, n) or cost(m, n, rank) >= m * n:
        raise RecipeError(
            f"ratio {ratio:.4g} with block {block} rounds to rank {rank}, which saves nothing of a {m} x {n} matrix; "
            "use a smaller block, a larger tau or a larger ratio"
        )
    return rank


def check_block(block: int, m: int, n: int) -> None:
    """Raises RecipeError for a block that is larger than an m x n matrix."""
    if block > min(m, n):
        raise RecipeError(
            f"block {block} is larger than the smaller side of a {m} x {n} matrix; use a block of at most {min(m, n)}"
        )


def ratio(dense_parameters: int, compressed_parameters: int) -> float:
    """Eq. 4: 1 - P' / P."""
    return 1 - compressed_parameters / dense_parameters
