"""The covariance of the intermediate neurons, z z^T [I, I] of what down reads: the one statistic of that size.

It is formed only where neurons may be dropped. A sample's products have the precision of the others (products.py), the
sum over samples is float64, 8 I^2 bytes of which the blocks above the diagonal stay zero; it is stored symmetric in
float32, 4 I^2 bytes, whose rounding is far below the ridge that it gets.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # of a block


def nothing(neurons: int, device: torch.device) -> Tensor:
    """The sum before the first sample."""
    return torch.zeros(neurons, neurons, dtype=torch.float64, device=device)


def add_inner(total: Tensor, z: Tensor) -> None:
    """Add z^T z for z [length, I], in blocks on and below the diagonal."""
    for start in range(0, len(total), ROWS):
        stop = min(start + ROWS, len(total))
        total[start:stop, :stop].add_(z[:, start:stop].T @ z[:, :stop])


def whole(total: Tensor) -> Tensor:
    """The symmetric matrix in float32."""
    found = total.to(torch.float32)
    for start in range(0, len(found), ROWS):
        stop = min(start + ROWS, len(found))
        found[:start, start:stop] = found[start:stop, :start].T
    return found
