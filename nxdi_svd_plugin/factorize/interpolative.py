"""Interpolative form of a low-rank matrix: r columns kept, every other column a combination of them.

A rank-r matrix W' = u v with u [m, r], v [r, n] equals W'[:, J] [I | C] up to a permutation of its columns, with
C = v[:, J]^-1 v[:, rest]. It stores r (m + n - r) numbers instead of r (m + n), exactly. How much rounding it costs
depends on the pivots J: the error of the kept columns is multiplied by C, so J is chosen by column-pivoted QR and then
improved by swaps until no coefficient between exchangeable columns exceeds a bound (Gu and Eisenstat 1996, maximum
volume). Between columns that may not change places no exact choice of J bounds C, so a coefficient above GROWTH_LIMIT
is fixed at it and the rest of its column fitted again: the only case in which W' changes. The largest coefficient is
the `growth` of the result. See Cheng, Gimbutas, Martinsson and Rokhlin 2005, On the compression of low rank matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nxdi_svd_plugin.factorize.dependent import DependentError, chosen, combined
from nxdi_svd_plugin.factorize.growth import limit_growth
from nxdi_svd_plugin.factorize.quotas import block_quotas, moved_quotas
from nxdi_svd_plugin.stored.projection import GROWTH_LIMIT

PANEL = 64  # pivots chosen between two updates of the whole residual
POOL = 4  # candidates per pivot of a panel
RELIABLE = 1e-10  # squared norms below this part of a panel's largest are rounding
GROWTH_BOUND = 1.5  # swaps stop when no exchangeable coefficient is larger
MAX_SWAPS = 400
QUOTAS = 16  # that are tried where the first leads to a coefficient that must be limited
EXCHANGED = 1e-9  # coefficients that many exchanges have made less accurate than this are solved for again


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


def interpolate(
    matrices: Sequence[Tensor], classes: Sequence[Sequence[Tensor]], block: int, bound: float = GROWTH_BOUND
) -> list[Interpolation]:
    """Choose pivots among the columns of every matrix so that its k-th class gives as many of them as the k-th class of
    every other, a multiple of `block`.

    How many is what the classes would give on their own, in the mean over the matrices, rounded to blocks; where a
    coefficient then has to be limited, up to QUOTAS others with one block elsewhere are tried. Where the
    columns are too dependent for that (repeated neurons and zeros in unlucky mixes), some of the pivots carry nothing,
    and what the others cannot give is `limited`.

    Args:
        matrices: [r, n], all of one shape; the lengths of the columns decide which are worth keeping.
        classes: for every matrix index tensors that partition 0..n-1 (the sets in which earlier pivot choices have cut
            the columns), of the same lengths for all.
        block: r must be a multiple of it.
    Raises:
        SvdError: r is no multiple of the block, or the classes have no room.
    """
    cells = len(classes[0])
    labels = [_labels(v, own) for v, own in zip(matrices, classes, strict=True)]
    try:
        return _independent(matrices, labels, cells, block, bound)
    except DependentError:
        return _dependent(matrices, labels, cells, block)


def _independent(
    matrices: Sequence[Tensor], labels: Sequence[Tensor], cells: int, block: int, bound: float
) -> list[Interpolation]:
    """Raises: DependentError."""
    rank = len(matrices[0])
    free = [_pivoted_qr(v, label, [rank] * cells) for v, label in zip(matrices, labels, strict=True)]
    counts = [torch.bincount(label[j], minlength=cells) for label, j in zip(labels, free, strict=True)]
    mean = [total / len(matrices) for total in torch.stack(counts).sum(0).tolist()]
    usable = _usable(matrices, labels, cells)
    if sum(size // block for size in usable) * block < rank:
        raise DependentError
    quota = block_quotas(mean, usable, rank, block)
    best: list[Interpolation] = []
    for tried in (quota, *islice(moved_quotas(quota, mean, usable, block), QUOTAS)):
        with suppress(DependentError):
            found = _with_quota(matrices, labels, free, tried, bound)
            best = min(best or found, found, key=_limited)
        if best and not _limited(best):
            break
    if not best:
        raise DependentError
    return best


def _with_quota(
    matrices: Sequence[Tensor], labels: Sequence[Tensor], free: Sequence[Tensor], quota: Sequence[int], bound: float
) -> list[Interpolation]:
    found = []
    for v, label, pivots in zip(matrices, labels, free, strict=True):
        fits = torch.bincount(label[pivots], minlength=len(quota)).tolist() == quota
        found.append(_swap(v, pivots if fits else _within_quota(v, pivots, label, quota), label, bound))
    return found


def _limited(found: Sequence[Interpolation]) -> float:
    """What the limit changes of the matrix that it changes most."""
    return max(one.limited for one in found)


def _dependent(matrices: Sequence[Tensor], labels: Sequence[Tensor], cells: int, block: int) -> list[Interpolation]:
    """The same for columns of any rank, by dependent.py."""
    rank = len(matrices[0])
    free = [label[chosen(v, label, [rank] * cells)] for v, label in zip(matrices, labels, strict=True)]
    counts = torch.stack([torch.bincount(own, minlength=cells) for own in free]).sum(0)
    quota = block_quotas((counts / len(matrices)).tolist(), torch.bincount(labels[0]).tolist(), rank, block)
    found = []
    for v, label in zip(matrices, labels, strict=True):
        pivots = chosen(v, label, quota, fill=True).sort().values
        mask = torch.ones(v.shape[1], dtype=torch.bool, device=v.device)
        mask[pivots] = False
        c, change = combined(v[:, pivots], v[:, mask], GROWTH_LIMIT)
        found.append(Interpolation(pivots, c, float(c.abs().max()) if c.numel() else 0.0, change))
    return found


def _labels(v: Tensor, classes: Sequence[Tensor]) -> Tensor:
    """The number of the class of every column."""
    label = torch.empty(v.shape[1], dtype=torch.long, device=v.device)
    for i, members in enumerate(classes):
        label[members] = i
    return label


def _usable(matrices: Sequence[Tensor], labels: Sequence[Tensor], cells: int) -> list[int]:
    """How many columns of every class may be pivots in all matrices: none of zeros."""
    used = [torch.bincount(label[(v != 0).any(0)], minlength=cells) for v, label in zip(matrices, labels, strict=True)]
    fewest: list[int] = torch.stack(used).amin(0).tolist()
    return fewest


def _pivoted_qr(v: Tensor, label: Tensor, quota: Sequence[int], taken: Tensor | None = None) -> Tensor:
    """As many pivots as `v` has rows, by QR with column pivoting, at most quota[c] from class c, in panels of products.

    The residual is float32: it decides which column comes next, never what is stored. No column of `taken` is chosen.
    """
    size = v.abs().max().clamp_min(torch.finfo(v.dtype).tiny)
    residual = (v.T / size).to(torch.float32, memory_format=torch.contiguous_format)  # a row for every column of v
    closed = torch.zeros(v.shape[1], dtype=torch.bool, device=v.device)
    if taken is not None:
        closed[taken] = True
    left, pivots = list(quota), []
    while residual.shape[1]:
        usable = torch.tensor([n > 0 for n in left], device=v.device)[label] & ~closed
        norms = torch.where(usable, torch.linalg.vector_norm(residual, dim=1), -1.0)
        count = min(PANEL, residual.shape[1])
        pool = torch.topk(norms, min(POOL * count, int(usable.sum()))).indices
        picked = pool[_panel(residual[pool].to(v.dtype), count, label[pool].tolist(), left)]
        residual = _reflected(residual, residual[picked])
        closed[picked] = True
        pivots.append(picked)
    return torch.cat(pivots)


def _reflected(rows: Tensor, picked: Tensor) -> Tensor:
    """The coordinates of `rows` in the directions that the m `picked` ones do not span; overwrites `rows`.

    Block reflection I - Y T Yᵀ that turns the picked rows into the first m coordinates, which are left out, with
    T⁻¹ = striu(YᵀY) + diag(YᵀY) / 2 (Schreiber and Van Loan 1989; Puglisi 1992).
    """
    m = len(picked)
    y = torch.geqrf(picked.T).a.tril(-1)
    y.diagonal().fill_(1.0)
    inner = y.T @ y
    inverse = inner.triu(1) + torch.diag(inner.diagonal() / 2)
    rows.addmm_(rows @ y, torch.linalg.solve_triangular(inverse, y.T, upper=True), alpha=-1.0)
    return rows[:, m:]


def _within_quota(v: Tensor, pivots: Tensor, label: Tensor, quota: Sequence[int]) -> Tensor:
    """The first pivots of every class up to its quota, and others in place of the rest: those that are longest in the
    directions which the kept ones do not span."""
    kept = torch.cat([pivots[label[pivots] == c][:most] for c, most in enumerate(quota)])
    reflectors, scales = torch.geqrf(v[:, kept])
    last = torch.eye(len(v), dtype=v.dtype, device=v.device)[:, len(kept) :]
    others = torch.ormqr(reflectors, scales, last)
    left = [most - int((label[kept] == c).sum()) for c, most in enumerate(quota)]
    return torch.cat([kept, _pivoted_qr(others.T @ v, label, left, kept)])


def _panel(pool: Tensor, count: int, labels: Sequence[int], left: list[int]) -> list[int]:
    """The rows that pivoting takes out of a small pool, the longest after those before it first; lowers `left`.

    It is a pivoted Cholesky factorization of the pool's Gram matrix. May stop early: when the pool's classes are used
    up, or when what is left of the rows is near the rounding of their squares.
    """
    gram = pool @ pool.T
    score = gram.diagonal().clone()
    rows = gram.new_zeros(count, len(gram))
    floor = RELIABLE * float(score.max())
    classes = torch.tensor(labels, device=pool.device)
    chosen: list[int] = []
    for i in range(count):
        best = int(score.argmax())
        size = float(score[best])
        if not size > floor:
            break
        row = (gram[best] - rows[:i, best] @ rows[:i]) / math.sqrt(size)
        rows[i] = row
        score -= row.square()
        score[best] = -torch.inf
        chosen.append(best)
        left[labels[best]] -= 1
        if not left[labels[best]]:
            score[classes == labels[best]] = -torch.inf
    if not chosen:
        raise DependentError
    return chosen


def _swap(v: Tensor, pivots: Tensor, label: Tensor, bound: float) -> Interpolation:
    """Exchange a pivot and another column of its class while a coefficient between such two exceeds `bound`."""
    mask = torch.ones(v.shape[1], dtype=torch.bool, device=v.device)
    mask[pivots] = False
    pivots, rest = pivots.sort().values, torch.nonzero(mask).flatten()
    c, swaps = _coefficients(v, pivots, rest), 0
    same = label[pivots][:, None] == label[rest][None, :]  # an exchange stays within a class: it never changes
    while c.numel() and swaps < MAX_SWAPS:
        size = torch.where(same, c.abs(), 0.0)
        i, j = divmod(int(size.argmax()), len(rest))
        if float(size[i, j]) <= bound:
            break
        pivots[i], rest[j] = rest[j].clone(), pivots[i].clone()
        c, swaps = _exchange(c, i, j), swaps + 1
    if swaps:
        (pivots, rows), (rest, columns) = pivots.sort(), rest.sort()
        c = c[rows][:, columns]
        if not _solves(v, pivots, rest, c):
            c = _coefficients(v, pivots, rest)
    limited = limit_growth(v[:, pivots], c, GROWTH_LIMIT)
    change = float((v[:, pivots] @ (limited - c)).norm() / v.norm()) if limited is not c else 0.0
    return Interpolation(pivots, limited, float(limited.abs().max()) if c.numel() else 0.0, change)


def _coefficients(v: Tensor, pivots: Tensor, rest: Tensor) -> Tensor:
    c: Tensor
    c, info = torch.linalg.solve_ex(v[:, pivots], v[:, rest])
    if int(info) or not torch.isfinite(c).all():
        raise DependentError
    return c


def _solves(v: Tensor, pivots: Tensor, rest: Tensor, c: Tensor) -> bool:
    """Whether exchanges have left v[:, pivots] c = v[:, rest] true, by one random combination of the columns."""
    z = torch.randn(len(rest), generator=torch.Generator().manual_seed(0), dtype=v.dtype).to(v.device)
    wanted = v[:, rest] @ z
    return float((v[:, pivots] @ (c @ z) - wanted).norm()) <= EXCHANGED * float(wanted.norm())


def _exchange(c: Tensor, i: int, j: int) -> Tensor:
    """The coefficients after pivot i and column j changed places (one step of Gauss-Jordan)."""
    pivot, row, column = c[i, j].clone(), c[i].clone(), c[:, j].clone()
    c.addr_(column, row, alpha=-1.0 / float(pivot))
    c[i] = row / pivot
    c[:, j] = -column / pivot
    c[i, j] = 1.0 / pivot
    return c
