"""Interpolative form of a low-rank matrix: r columns kept, every other column a combination of them.

A rank-r matrix W' = u v with u [m, r], v [r, n] equals W'[:, J] [I | C] up to a permutation of its columns, with
C = v[:, J]^-1 v[:, rest]. It stores r (m + n - r) numbers instead of r (m + n), exactly. How much rounding it costs
depends on the pivots J: the error of the kept columns is multiplied by C, so J is chosen by column-pivoted QR and then
improved by swaps until no coefficient between exchangeable columns exceeds a bound (Gu and Eisenstat 1996, maximum
volume). Between columns that may not change places no exact choice of J bounds C, so a coefficient above GROWTH_LIMIT
is fixed at it and the rest of its column fitted again: the only case in which W' changes. The largest coefficient is
the `growth` of the result. Source: paper-notes.md, last section.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import RecipeError, SvdError
from nxdi_svd_plugin.factorize.rank import check_block

PANEL = 64  # pivots chosen between two updates of the whole residual
POOL = 4  # candidates per pivot of a panel
GROWTH_BOUND = 1.5  # swaps stop when no exchangeable coefficient is larger
GROWTH_LIMIT = 16.0  # no coefficient is ever larger
MAX_SWAPS = 400


@dataclass(frozen=True)
class Interpolation:
    """The pivots J (ascending, [r]), the coefficients C ([r, n - r], other columns ascending) and max |C|.

    limited: |v - v[:, J] [I | C]| / |v|, Frobenius: what GROWTH_LIMIT has changed; 0 where it never acted.
    """

    pivots: Tensor
    coefficients: Tensor
    growth: float
    limited: float = 0.0

    def in_order(self, columns: Tensor, kept: Tensor) -> Tensor:
        """C with its rows in the order of `kept` (the pivots) and its columns in that of `columns` (the others)."""
        others = columns.sort().values
        rows, places = torch.searchsorted(self.pivots, kept), torch.searchsorted(others, columns)
        return self.coefficients[rows][:, places]


def interpolative_cost(fan_in: int, fan_out: int, rank: int) -> int:
    """Numbers stored, and multiply-adds per token, of a rank-r matrix in interpolative form."""
    return rank * (fan_in + fan_out - rank)


def interpolative_rank(fan_in: int, fan_out: int, ratio: float, block: int, tau: float = 0.5) -> int:
    """Eq. 5 for the interpolative cost: r with r (m + n - r) = (1 - ratio) m n, in multiples of `block`.

    r = b floor(r0 / b + 1 - tau), r0 the smaller root.
    Raises:
        RecipeError: the block is larger than the matrix, or Eq. 5 gives no multiple of it from 1 to min(m, n) - 1.
    """
    check_block(block, fan_in, fan_out)
    total = fan_in + fan_out
    exact = (total - math.sqrt(total**2 - 4 * (1 - ratio) * fan_in * fan_out)) / 2
    rank = math.floor(exact / block + 1 - tau) * block
    if not 0 < rank < min(fan_in, fan_out):
        raise RecipeError(
            f"ratio {ratio:.4g} with block {block} rounds to rank {rank} for a {fan_in} x {fan_out} matrix, "
            f"where ranks of 1 to {min(fan_in, fan_out) - 1} save something; use a smaller block or another ratio"
        )
    return rank


def interpolate(v: Tensor, classes: Sequence[Tensor], block: int, bound: float = GROWTH_BOUND) -> Interpolation:
    """Choose pivots among the columns of `v` so that every class gives a multiple of `block` of them.

    Args:
        v: [r, n] of full row rank; the lengths of its columns decide which are worth keeping.
        classes: index tensors that partition 0..n-1 (the sets in which earlier pivot choices have cut the columns).
        block: r must be a multiple of it.
    Raises:
        SvdError: r is no multiple of the block, the classes have no room, or v is rank-deficient.
    """
    rank, width = v.shape
    label = torch.empty(width, dtype=torch.long, device=v.device)
    for i, members in enumerate(classes):
        label[members] = i
    pivots = _pivoted_qr(v, rank, label, [rank] * len(classes))
    counts = torch.bincount(label[pivots], minlength=len(classes)).tolist()
    quota = block_quotas(counts, [len(c) for c in classes], rank, block)
    if quota != counts:
        pivots = _pivoted_qr(v, rank, label, quota)
    return _swap(v, pivots, label, bound)


def block_quotas(wanted: Sequence[int], sizes: Sequence[int], rank: int, block: int) -> list[int]:
    """Multiples of `block`, at most `sizes`, that sum to `rank` and stay nearest to `wanted` (largest remainders)."""
    if rank % block or sum(size // block for size in sizes) * block < rank:
        raise SvdError(f"rank {rank} in blocks of {block} does not fit into classes of {list(sizes)} columns")
    room = [size // block for size in sizes]
    taken = [min(want // block, most) for want, most in zip(wanted, room, strict=True)]
    while sum(taken) * block < rank:
        open_ = [i for i in range(len(taken)) if taken[i] < room[i]]
        taken[max(open_, key=lambda i: (wanted[i] / block - taken[i], room[i] - taken[i]))] += 1
    return [count * block for count in taken]


def _pivoted_qr(v: Tensor, rank: int, label: Tensor, quota: Sequence[int]) -> Tensor:
    """`rank` pivots by QR with column pivoting, at most quota[c] from class c, in panels of products."""
    residual, left = v.clone(), list(quota)
    taken = torch.zeros(v.shape[1], dtype=torch.bool, device=v.device)
    pivots: list[int] = []
    while len(pivots) < rank:
        usable = torch.tensor([n > 0 for n in left], device=v.device)[label] & ~taken
        norms = torch.where(usable, residual.square().sum(0), -1.0)
        count = min(PANEL, rank - len(pivots))
        pool = torch.topk(norms, min(POOL * count, int(usable.sum()))).indices
        chosen, basis = _panel(residual[:, pool], count, label[pool].tolist(), left)
        picked = pool[chosen]
        residual -= basis @ (basis.T @ residual)
        residual[:, picked] = 0.0
        taken[picked] = True
        pivots += picked.tolist()
    return torch.tensor(pivots, device=v.device)


def _panel(pool: Tensor, count: int, labels: Sequence[int], left: list[int]) -> tuple[list[int], Tensor]:
    """Plain pivoted Gram-Schmidt on a small pool; lowers `left`. May stop early when the pool's classes are used up."""
    work = pool.clone()
    chosen: list[int] = []
    basis: list[Tensor] = []
    floor = 1e-26 * float(pool.square().sum(0).max())
    for _ in range(count):
        norms = work.square().sum(0).tolist()
        open_ = [i for i, c in enumerate(labels) if left[c] > 0 and i not in chosen]
        if not open_:
            break
        best = max(open_, key=lambda i: norms[i])
        if not norms[best] > floor:
            if chosen:
                break
            raise SvdError("the columns that may be pivots do not span the matrix: it is rank-deficient")
        direction = work[:, best] / math.sqrt(norms[best])
        for other in basis:  # once more against what is there: keeps the basis orthogonal to rounding
            direction = direction - other * (other @ direction)
        direction = direction / direction.norm()
        work -= direction[:, None] * (direction @ work)
        basis.append(direction)
        chosen.append(best)
        left[labels[best]] -= 1
    return chosen, torch.stack(basis, 1)


def _swap(v: Tensor, pivots: Tensor, label: Tensor, bound: float) -> Interpolation:
    """Exchange a pivot and another column of its class while a coefficient between such two exceeds `bound`."""
    mask = torch.ones(v.shape[1], dtype=torch.bool, device=v.device)
    mask[pivots] = False
    rest = torch.arange(v.shape[1], device=v.device)[mask]
    pivots = pivots.clone()
    c = _coefficients(v, pivots, rest)
    for _ in range(MAX_SWAPS):
        same = label[pivots][:, None] == label[rest][None, :]
        at = int(torch.where(same, c.abs(), 0.0).argmax()) if c.numel() else 0
        i, j = divmod(at, max(len(rest), 1))
        if not c.numel() or not same[i, j] or float(c[i, j].abs()) <= bound:
            break
        pivots[i], rest[j] = rest[j].clone(), pivots[i].clone()
        c = _exchange(c, i, j)
    pivots, rest = pivots.sort().values, rest.sort().values
    c = _coefficients(v, pivots, rest)
    limited = limit_growth(v[:, pivots], c, GROWTH_LIMIT)
    change = float((v[:, pivots] @ (limited - c)).norm() / v.norm()) if limited is not c else 0.0
    return Interpolation(pivots, limited, float(limited.abs().max()) if c.numel() else 0.0, change)


def limit_growth(kept: Tensor, c: Tensor, limit: float) -> Tensor:
    """`c` with no coefficient larger than `limit`; the same tensor where none is.

    In a column that has one, the largest is fixed at the limit and the others are chosen by least squares in
    |kept (c - c')|, kept [r, r], until all hold. With H = (keptᵀ kept)⁻¹, fixed rows F and their targets t that is
    c' = c - H[:, F] H[F, F]⁻¹ (c - t)[F].
    """
    wrong = torch.nonzero((c.abs() > limit).any(0)).flatten().tolist()
    if not wrong:
        return c
    inverse = torch.linalg.inv(kept)
    gram, result = inverse @ inverse.T, c.clone()
    for j in wrong:
        at: list[int] = []
        while float(result[:, j].abs().max()) > limit:
            at.append(int(result[:, j].abs().argmax()))
            target = result[at, j].clamp(-limit, limit)
            step = torch.linalg.solve(gram[at][:, at], c[at, j] - target)
            result[:, j] = c[:, j] - gram[:, at] @ step
            result[at, j] = target
    return result


def _coefficients(v: Tensor, pivots: Tensor, rest: Tensor) -> Tensor:
    c: Tensor
    c, info = torch.linalg.solve_ex(v[:, pivots], v[:, rest])
    if int(info) or not torch.isfinite(c).all():
        raise SvdError("the columns that may be pivots do not span the matrix: it is rank-deficient")
    return c


def _exchange(c: Tensor, i: int, j: int) -> Tensor:
    """The coefficients after pivot i and column j changed places (one step of Gauss-Jordan)."""
    pivot, row, column = c[i, j].clone(), c[i].clone(), c[:, j].clone()
    new = c - column[:, None] * (row / pivot)[None, :]
    new[i] = row / pivot
    new[:, j] = -column / pivot
    new[i, j] = 1.0 / pivot
    return new
