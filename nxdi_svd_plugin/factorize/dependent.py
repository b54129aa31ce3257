"""Pivots and coefficients of a matrix whose columns have a smaller rank than there are to be pivots.

Plain pivoted Gram-Schmidt in float64, a column at a time: slow, exact, and never short of pivots. What interpolative.py
does for all other matrices needs columns that span their rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError

NOTHING = 1e-10  # of the longest column: what is left of a column below that is rounding
EXACT = 1e-9  # of the matrix: what is changed below that is rounding


class DependentError(SvdError):
    """The columns that may be pivots have a smaller rank than there are to be pivots."""

    def __init__(self) -> None:
        super().__init__("the columns that may be pivots do not span the matrix: it is rank-deficient")


def chosen(v: Tensor, label: Tensor, quota: Sequence[int], fill: bool = False) -> Tensor:
    """Columns of v [r, n] with at most quota[c] of class c, the longest in the directions that those before it leave.

    Args:
        label: [n] the class of every column.
        fill: give every class its quota, with columns that add nothing; they are no fewer than that.
    """
    residual, left, found = v.clone(), list(quota), list[int]()
    open_ = torch.tensor([n > 0 for n in left], device=v.device)[label]
    size = float(v.norm(dim=0).max())
    while len(found) < len(v):
        lengths = torch.where(open_, residual.norm(dim=0), -1.0)
        j = int(lengths.argmax())
        if not float(lengths[j]) > NOTHING * size:
            break
        direction = residual[:, j] / lengths[j]
        residual.addr_(direction, direction @ residual, alpha=-1.0)
        found.append(j)
        open_[j] = False
        left[int(label[j])] -= 1
        if not left[int(label[j])]:
            open_ &= label != label[j]
    taken = set(found)
    for c, more in enumerate(left if fill else []):
        found += [j for j in torch.nonzero(label == c).flatten().tolist() if j not in taken][:more]
    return torch.tensor(found, dtype=torch.long, device=v.device)


def combined(kept: Tensor, rest: Tensor, limit: float) -> tuple[Tensor, float]:
    """The smallest C of least |rest - kept C|, no coefficient above the limit, and that residual over |[kept, rest]|.

    Args:
        kept: [r, r], of any rank. rest: [r, n - r].
    """
    c = (torch.linalg.pinv(kept, rtol=NOTHING) @ rest).clamp(-limit, limit)
    size = float(torch.hypot(kept.norm(), rest.norm()))
    change = float((kept @ c - rest).norm()) / size if size > 0 else 0.0
    return c, change if change > EXACT else 0.0
