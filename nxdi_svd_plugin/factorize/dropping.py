"""Which intermediate neurons an MLP can do without, and the down projection refitted on those that stay.

With z [I] what down reads, W its weight as [I, H], y = z W, and G the covariance of the loss gradient at y, dropping
neurons and refitting the others costs the model, in nats per token and to second order,

    loss = min over W' of 1/2 tr((W - W')^T A (W - W') G) = 1/2 <M_D, (B_DD)^-1 M_D>,

where D are the dropped rows (W' is zero there), A = E[z z^T] + ridge, B = A^-1, M = W S and G + ridge = S S^T. The
minimum over W' is ridge least squares and does not depend on G. Neurons go one batch after the other, those first that
cost least (1/2 |M_i|^2 / B_ii): an elimination of B by blocks, which keeps M equal to W' S. Sources: Hassibi and Stork
1993, Second order derivatives for network pruning: Optimal Brain Surgeon, Eq. 5; SparseGPT, arXiv:2301.00774, section
3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.itemsize import itemsize
from nxdi_svd_plugin.factorize.spectrum import PRECISION, damp

AT_ONCE = 8  # neurons of a batch, whose order is decided together
SHARE_AT_ONCE = 192  # or I over this, where it is more
ROWS = 1024  # of a matrix that are worked on at a time
PROBES = 64
UPDATES = 16  # of the whole inverse on the way down to nothing; between them neurons are counted off one by one


def precision(neurons: int, damping: float) -> torch.dtype:
    """Of the products of an elimination or a refit."""
    return torch.float32 if itemsize(neurons, damping) == torch.float32.itemsize else PRECISION


@dataclass(frozen=True)
class Elimination:
    """order: [d] the neurons that go, in their order. losses: [d] nats per token when these and all before are gone."""

    order: Tensor
    losses: Tensor


def eliminate(
    inner: Tensor,
    gradients: Tensor,
    weight: Tensor,
    stages: Sequence[int],
    groups: int,
    damping: float,
    at_once: int | None = None,
) -> Elimination:
    """The order in which neurons go, down to the last of `stages`, at each of which all slices have lost as many.

    Each of the `groups` equal slices is eliminated by itself, as if it were uncorrelated with the others: of the I^3
    operations that takes one part in groups^2. What fitting all slices together saves is measured at the middle stage
    and taken off all losses. In two slices of SmolLM2 the losses are within 3 % of those of one elimination of all,
    which would save at most 0.8 %.

    Args:
        inner: [I, I] E[z z^T], whose precision is that of the products.
        gradients: [H, H] covariance of the loss gradient at the output.
        weight: [I, H], down.
        stages: descending widths, the first I, all multiples of `groups`.
        damping: relative ridge of both covariances.
        at_once: neurons of a batch; None is AT_ONCE or 1 / SHARE_AT_ONCE of a slice.
    Raises:
        SvdError: a covariance that is not finite or, damped, not positive definite.
    """
    if len(stages) < 2:
        return Elimination(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=PRECISION))
    mean, own = float(inner.diagonal().mean()), len(weight) // groups
    signal = mean > 0 and bool(gradients.diagonal().sum() > 0)
    m = weight.to(inner.dtype) @ damp(gradients.to(PRECISION), damping)[0].to(inner.dtype)
    probes, batch = _probes(m), at_once or max(AT_ONCE, own // SHARE_AT_ONCE)
    each = [(a - b) // groups for a, b in zip(stages, stages[1:], strict=False)]
    found = []
    for start in range(0, len(weight), own):
        at = slice(start, start + own)
        left = _Left(_inverse(inner[at, at], damping * mean), m[at])
        parts = (left.drop(count, batch) for count in each)
        found.append([(start + numbers, costs) for numbers, costs in parts])
    in_order = (part for stage in zip(*found, strict=True) for part in stage)
    order, costs = (torch.cat(column) for column in zip(*in_order, strict=True))
    share = _together(inner, damping * mean, probes, order[: stages[0] - stages[len(stages) // 2]], groups)
    return Elimination(order.cpu(), costs.to(PRECISION).cumsum(0).cpu() * (share if signal else 0.0))


def _probes(m: Tensor) -> Tensor:
    """[I, PROBES] sums of the columns of M with random signs, whose quadratic forms are on average those of M; M itself
    where it has no more columns."""
    if m.shape[1] <= PROBES:
        return m.clone()
    signs = torch.randint(2, (m.shape[1], PROBES), generator=torch.Generator().manual_seed(0))
    probes: Tensor = m @ (2 * signs - 1).to(m) / PROBES**0.5
    return probes


def _together(inner: Tensor, ridge: float, probes: Tensor, gone: Tensor, groups: int) -> float:
    """The loss of dropping when the slices are fitted together, over that when each is fitted by itself."""
    if groups == 1 or ridge == 0.0:
        return 1.0
    dropped = torch.zeros(len(probes), dtype=torch.bool, device=probes.device)
    dropped[gone] = True
    whole = _least(inner, ridge, probes, dropped)
    slices = (slice(at, at + len(probes) // groups) for at in range(0, len(probes), len(probes) // groups))
    apart = sum(_least(inner[at, at], ridge, probes[at], dropped[at]) for at in slices)
    return whole / apart if apart > 0 else 1.0


def _least(inner: Tensor, ridge: float, m: Tensor, dropped: Tensor) -> float:
    """<M_D, (B_DD)^-1 M_D> from A instead of B: A_DD less what the neurons that stay explain of it."""
    gone, kept = (torch.nonzero(which).flatten() for which in (dropped, ~dropped))
    square, own = inner[kept[:, None], kept], m[gone]
    square.diagonal().add_(ridge)
    explained = torch.linalg.solve_triangular(
        _root_in_place(square), inner[kept[:, None], gone] @ own, upper=False
    ).square()
    return float((own * (inner[gone[:, None], gone] @ own)).sum() + ridge * own.square().sum() - explained.sum())


def _inverse(covariance: Tensor, ridge: float) -> Tensor:
    """(covariance + ridge)^-1 with one more matrix beside it; the identity without a ridge, which is one of zero."""
    damped = covariance.clone()
    if ridge == 0.0:
        return damped.zero_().fill_diagonal_(1.0)
    damped.diagonal().add_(ridge)
    return torch.cholesky_inverse(_root(damped), out=damped.T).T


class _Left:
    """What the elimination of a slice has left: B and M of the neurons that are there, and their numbers.

    B is brought up to date when 1 / UPDATES of all neurons went: until then it is B - L L^T, with a column of L for
    every neuron that went.
    """

    def __init__(self, inverse: Tensor, m: Tensor) -> None:
        self.inverse, self.m = inverse, m
        self.diagonal = inverse.diagonal().clone()
        self.number = torch.arange(len(m), device=m.device)
        self.room = len(m) // UPDATES
        self._begin()

    def _begin(self) -> None:
        """L is empty."""
        self.open = torch.ones(len(self.m), dtype=torch.bool, device=self.m.device)
        self.columns = self.m.new_zeros(len(self.m), 0)

    def drop(self, count: int, batch: int) -> tuple[Tensor, Tensor]:
        """Drop so many neurons; their numbers and what each adds to the loss."""
        if self.columns.shape[1] >= self.room:
            self._shrink()
            self._begin()
        gone, costs, done = [], [], self.columns.shape[1]
        self.columns = torch.cat([self.columns, self.m.new_empty(len(self.m), count)], dim=1)
        while done < self.columns.shape[1]:
            picked = self._cheapest(min(batch, self.columns.shape[1] - done))
            costs.append(self._eliminate(picked, done))
            self.open[picked] = False
            gone.append(picked)
            done += len(picked)
        return self.number[torch.cat(gone)], torch.cat(costs)

    def _cheapest(self, count: int) -> Tensor:
        """The next batch: those with the smallest loss."""
        loss = torch.linalg.vector_norm(self.m, dim=1).square() / self.diagonal
        return torch.topk(torch.where(self.open, loss, torch.inf), count, largest=False).indices

    def _eliminate(self, picked: Tensor, done: int) -> Tensor:
        """Take these out of M and the diagonal of B, and write their columns of L; what each adds to the loss."""
        before = self.columns[:, :done]
        block = torch.addmm(self.inverse[picked].T, before, before[picked].T, alpha=-1.0)
        root = torch.linalg.cholesky(block[picked])
        new = torch.linalg.solve_triangular(root, block.T, upper=False).T
        m = torch.linalg.solve_triangular(root, self.m[picked], upper=False)
        self.columns[:, done : done + len(picked)] = new
        self.m.addmm_(new, m, alpha=-1.0)
        self.diagonal.sub_(new.square().sum(1))
        costs: Tensor = 0.5 * m.square().sum(1)
        return costs

    def _shrink(self) -> None:
        """What stays moves to the front of B's memory; none of its rows is overwritten before it has moved."""
        rest = torch.nonzero(self.open).flatten()
        self.m, self.number, columns = (x[rest] for x in (self.m, self.number, self.columns))
        count = len(rest)
        for start in range(0, count, ROWS):
            rows, stop = rest[start : start + ROWS], min(start + ROWS, count)
            block = self.inverse[rows[:, None], rest[:stop]].addmm_(columns[start:stop], columns[:stop].T, alpha=-1.0)
            self.inverse[start:stop, :stop] = block
        self.inverse = self.inverse[:count, :count]
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            self.inverse[:start, start:stop] = self.inverse[start:stop, :start].T
        self.diagonal = self.inverse.diagonal().clone()


def refit(inner: Tensor, weight: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The rows of down [k, H] that stay, by ridge least squares on the output of all: W_k + A_kk^-1 A_kd W_d.

    They minimise |z W - z_k W'|^2 over the tokens, with `damping` times the mean square of z as ridge towards W.

    Args:
        inner: [I, I] E[z z^T] or a multiple of it, whose precision is that of the products. weight: [I, H]. kept: [k].
    Raises:
        SvdError: the covariance is not finite or, damped, not positive definite.
    """
    wide, mean = weight.to(inner.dtype), float(inner.diagonal().mean())
    gone = torch.ones(len(wide), dtype=torch.bool, device=wide.device)
    gone[kept] = False
    if not gone.any() or mean == 0.0:
        return wide[kept]
    dropped = torch.nonzero(gone).flatten()
    target = inner[kept[:, None], dropped] @ wide[dropped]
    square = inner[kept[:, None], kept]
    square.diagonal().add_(damping * mean)
    root = _root_in_place(square)
    half = torch.linalg.solve_triangular(root, target, upper=False)
    found: Tensor = torch.linalg.solve_triangular(root.T, half, upper=True)
    return found.add_(wide[kept])


def fitted_loss(
    inner: Tensor, gradients: Tensor, weight: Tensor, kept: Tensor, fitted: Tensor, damping: float
) -> float:
    """Nats per token that dropping costs with the rows of `refit`: 1/2 tr((W - W')^T A (W - W') G), whose kept rows of
    A (W - W') are zero.

    Args:
        inner: [I, I] E[z z^T]; the rest as in `eliminate` and `refit`. fitted: [k, H].
    """
    change = weight.to(inner.dtype).clone()
    change[kept] -= fitted.to(inner.dtype)
    gone = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    gone[kept] = False
    seen = inner[gone] @ change + damping * inner.diagonal().mean() * change[gone]
    root = damp(gradients.to(PRECISION), damping)[0]
    return 0.5 * float(((change[gone].T @ seen).to(PRECISION) @ root * root).sum())


def _root_in_place(matrix: Tensor) -> Tensor:
    """The Cholesky root in the lower triangle of a matrix, whose upper one is left as it was: no second matrix."""
    for start in range(0, len(matrix), ROWS):
        stop = start + ROWS
        own, below = matrix[start:stop, start:stop], matrix[stop:, start:stop]
        own.copy_(_root(own))
        below.copy_(torch.linalg.solve_triangular(own, below.T, upper=False).T)
        for column in range(stop, len(matrix), ROWS):
            rows = below[column - stop :]
            matrix[column:, column : column + ROWS].addmm_(rows, rows[:ROWS].T, alpha=-1.0)
    return matrix


def _root(matrix: Tensor) -> Tensor:
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not torch.isfinite(root.diagonal()).all():
        raise SvdError(
            "the covariance of what down reads is not finite or, damped, not positive definite; raise damping or check "
            "the calibration text"
        )
    return root


def kept_shares(weight: Tensor, near: Tensor, squares: Tensor, order: Tensor, stages: Sequence[int]) -> list[float]:
    """How much of sum_i W_i^T near W_i far_ii is left at every stage: by so much the energies of gate and up shrink.

    It is exact for their sum where the far side is uncorrelated.

    Args:
        weight: [H, I]. near: [H, H]. squares: [I], the diagonal of far. order: of an `Elimination`.
    """
    energy = ((near.to(weight.dtype) @ weight) * weight).sum(0).to(PRECISION) * squares
    total = float(energy.sum())
    lost = torch.cat([energy.new_zeros(1), energy[order.to(energy.device)].cumsum(0)])
    return [1.0 - float(lost[stages[0] - stage]) / total if total > 0 else 1.0 for stage in stages]
