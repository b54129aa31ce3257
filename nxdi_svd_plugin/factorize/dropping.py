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
from nxdi_svd_plugin.factorize.spectrum import PRECISION, damp

AT_ONCE = 8  # neurons of a batch, whose order is decided together
SHARE_AT_ONCE = 192  # or I over this, where it is more
ROWS = 1024  # of a matrix that are worked on at a time


@dataclass(frozen=True)
class Elimination:
    """order: [d] the neurons that go, in their order. losses: [d] nats per token when these and all before are gone."""

    order: Tensor
    losses: Tensor


def widths(neurons: int, step: int, least: int) -> list[int]:
    """What a layer may keep: all of its neurons, or a multiple of `step` that is at least `least`; descending."""
    return [neurons, *(w for w in range(neurons // step * step, 0, -step) if least <= w < neurons)]


def eliminate(
    inner: Tensor,
    gradients: Tensor,
    weight: Tensor,
    stages: Sequence[int],
    groups: int,
    damping: float,
    at_once: int | None = None,
) -> Elimination:
    """The order in which neurons go, down to the last of `stages`.

    At every stage each of the `groups` equal slices of the neurons has lost as many; between two of them, the cheapest
    neuron of a slice that has not yet lost its share goes next.

    Args:
        inner: [I, I] E[z z^T], float64; it is overwritten.
        gradients: [H, H] covariance of the loss gradient at the output.
        weight: [I, H], down.
        stages: descending widths, the first I, all multiples of `groups`.
        damping: relative ridge of both covariances.
        at_once: neurons of a batch; None is AT_ONCE or I / SHARE_AT_ONCE.
    Raises:
        SvdError: a covariance that is not finite or, damped, not positive definite.
    """
    signal = bool(inner.diagonal().sum() > 0) and bool(gradients.diagonal().sum() > 0)
    root, _ = damp(gradients.to(PRECISION), damping)
    left = _Left(_inverse(inner, damping), weight.to(PRECISION) @ root, groups)
    batch = at_once or max(AT_ONCE, len(weight) // SHARE_AT_ONCE)
    parts = [left.drop((a - b) // groups, batch) for a, b in zip(stages, stages[1:], strict=False)]
    if not parts:
        return Elimination(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=PRECISION))
    order, costs = (torch.cat(column) for column in zip(*parts, strict=True))
    return Elimination(order.cpu(), costs.cumsum(0).cpu() * signal)


def _inverse(covariance: Tensor, damping: float) -> Tensor:
    """(covariance + damping * mean diagonal)^-1 in its own memory, with one more matrix beside it; the identity where
    it is zero."""
    mean = float(covariance.diagonal().mean())
    if mean == 0.0:
        return covariance.zero_().fill_diagonal_(1.0)
    covariance.diagonal().add_(damping * mean)
    return torch.cholesky_inverse(_root(covariance), out=covariance.T).T


class _Left:
    """What an elimination has left: B and M of the neurons that are there, and their numbers.

    B is brought up to date at the end of a stage only: until then it is B - L L^T, with a column of L for every neuron
    that went.
    """

    def __init__(self, inverse: Tensor, m: Tensor, groups: int) -> None:
        self.inverse, self.m = inverse, m
        self.diagonal = inverse.diagonal().clone()
        self.number = torch.arange(len(m), device=m.device)
        self.group = self.number // (len(m) // groups)
        self.groups = groups

    def drop(self, each: int, batch: int) -> tuple[Tensor, Tensor]:
        """Drop `each` neurons of every group; their numbers and what each adds to the loss."""
        quota, gone, costs = [each] * self.groups, [], []
        open_ = torch.ones(len(self.m), dtype=torch.bool, device=self.m.device)
        columns = self.m.new_zeros(len(self.m), each * self.groups)
        done = 0
        while done < columns.shape[1]:
            picked = self._cheapest(open_, quota, batch)
            costs.append(self._eliminate(picked, columns, done))
            open_[picked] = False
            gone.append(picked)
            done += len(picked)
        numbers = self.number[torch.cat(gone)]
        self._shrink(open_, columns)
        return numbers, torch.cat(costs)

    def _cheapest(self, open_: Tensor, quota: list[int], batch: int) -> Tensor:
        """The next batch: those with the smallest loss, no more of a group than its quota, which is lowered."""
        wanted = open_ & torch.tensor([n > 0 for n in quota], device=open_.device)[self.group]
        loss = self.m.square().sum(1) / self.diagonal
        loss = torch.where(wanted, loss, torch.inf)
        picked = []
        for i in torch.topk(loss, min(batch, int(wanted.sum())), largest=False).indices.tolist():
            group = int(self.group[i])
            if quota[group]:
                quota[group] -= 1
                picked.append(i)
        return torch.tensor(picked, device=open_.device)

    def _eliminate(self, picked: Tensor, columns: Tensor, done: int) -> Tensor:
        """Take these out of M and the diagonal of B, and write their columns of L; what each adds to the loss."""
        before = columns[:, :done]
        block = self.inverse[:, picked] - before @ before[picked].T
        root = torch.linalg.cholesky(block[picked])
        new = torch.linalg.solve_triangular(root, block.T, upper=False).T
        m = torch.linalg.solve_triangular(root, self.m[picked], upper=False)
        columns[:, done : done + len(picked)] = new
        self.m.addmm_(new, m, alpha=-1.0)
        self.diagonal.sub_(new.square().sum(1))
        costs: Tensor = 0.5 * m.square().sum(1)
        return costs

    def _shrink(self, stays: Tensor, columns: Tensor) -> None:
        """What stays moves to the front of B's memory; none of its rows is overwritten before it has moved."""
        rest = torch.nonzero(stays).flatten()
        self.m, self.number, self.group, columns = self.m[rest], self.number[rest], self.group[rest], columns[rest]
        count = len(rest)
        for start in range(0, count, ROWS):
            rows = rest[start : start + ROWS]
            self.inverse[start : start + len(rows), :count] = self.inverse[rows[:, None], rest]
        self.inverse = self.inverse[:count, :count].addmm_(columns, columns.T, alpha=-1.0)
        self.diagonal = self.inverse.diagonal().clone()


def refit(inner: Tensor, weight: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The rows of down [k, H] that stay, by ridge least squares on the output of all: W_k + A_kk^-1 A_kd W_d.

    They minimise |z W - z_k W'|^2 over the tokens, with `damping` times the mean square of z as ridge towards W.

    Args:
        inner: [I, I] E[z z^T] or a multiple of it. weight: [I, H]. kept: [k].
    Raises:
        SvdError: the covariance is not finite or, damped, not positive definite.
    """
    wide, mean = weight.to(PRECISION), float(inner.diagonal().to(PRECISION).mean())
    gone = torch.ones(len(wide), dtype=torch.bool, device=wide.device)
    gone[kept] = False
    if not gone.any() or mean == 0.0:
        return wide[kept]
    dropped = torch.nonzero(gone).flatten()
    target = inner[kept[:, None], dropped].to(PRECISION) @ wide[dropped]
    square = inner[kept[:, None], kept].to(PRECISION)
    square.diagonal().add_(damping * mean)
    root = _root_in_place(square)
    half = torch.linalg.solve_triangular(root, target, upper=False)
    found: Tensor = torch.linalg.solve_triangular(root.T, half, upper=True)
    return found.add_(wide[kept])


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
