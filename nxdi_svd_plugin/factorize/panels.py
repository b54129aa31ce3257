"""Products of matrices of which half is zero or known, in panels of columns that leave most of that half out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 512


def panels(size: int) -> Iterator[slice]:
    """The columns of every panel."""
    return (slice(at, min(at + PANEL, size)) for at in range(0, size, PANEL))


def times_lower(x: Tensor, lower: Tensor) -> Tensor:
    """x L for a lower-triangular L [n, n]."""
    return torch.cat([x[:, at.start :] @ lower[at.start :, at] for at in panels(len(lower))], dim=1)


def times_lower_transposed(x: Tensor, lower: Tensor) -> Tensor:
    """x L^T for a lower-triangular L [n, n]."""
    return torch.cat([x[:, : at.stop] @ lower[at, : at.stop].T for at in panels(len(lower))], dim=1)


def symmetric(left: Tensor, right: Tensor) -> Tensor:
    """left^T right [n, n] where that is symmetric, to the last bit: the part above the diagonal is copied."""
    size = left.shape[1]
    product = torch.empty(size, size, dtype=left.dtype, device=left.device)
    for at in panels(size):
        torch.mm(left[:, at.start :].T, right[:, at], out=product[at.start :, at])
    mirror(product)
    return product


def add_lower(total: Tensor, x: Tensor) -> None:
    """Add x^T x to [n, n] on and below the diagonal, and to some of what is above it."""
    for at in panels(len(total)):
        total[at.start :, at].add_(x[:, at.start :].T @ x[:, at])


def mirror(square: Tensor) -> None:
    """Overwrite what is above the diagonal of [n, n] with what is below it."""
    for at in panels(len(square)):
        block = square[at, at]
        block.copy_(block.tril() + block.tril(-1).T)
        square[at, at.stop :] = square[at.stop :, at].T
