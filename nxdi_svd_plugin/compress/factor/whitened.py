"""The paper's objective: Eq. 2-3 with the sums over all tokens, Eq. 6-8 to split the singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.factor.sides import Decomposed, Sides
from nxdi_svd_plugin.compress.forms import Factors, Truncation
from nxdi_svd_plugin.factorize import svd
from nxdi_svd_plugin.factorize.whitening import Whitening, whiten
from nxdi_svd_plugin.stored.projection import READS, Side


@dataclass(frozen=True)
class InputWhitened:
    """One group of a projection. whitening: of its inputs where these are its smaller side, else None."""

    sides: Sides
    eigen: svd.Eigen
    whitening: Whitening | None

    @property
    def energy(self) -> Tensor:
        """Output error over the calibration tokens."""
        return self.eigen.values

    @property
    def relative_ridge(self) -> float | None:
        """On the covariance of the inputs."""
        return self.eigen.relative_ridge

    def truncated(self, rank: int) -> Truncation:
        """u, v of the paper as near and far."""
        if self.whitening is not None:
            found = svd.factor_by_input(self.sides.weight, self.whitening, rank, self.eigen)
        else:
            found = svd.factor_by_output(self.sides.weight, torch.empty(0), rank, self.eigen)
        reads = READS[self.sides.name]
        return Factors(*((found.u, found.v) if reads is Side.HIDDEN else (found.v.T, found.u.T)), None)

    def loss(self, rank: int) -> None:
        """The output error of one projection says nothing about the model's."""

    def output(self, rank: int) -> tuple[float, float]:
        """The energy is that of the output."""
        return float(self.energy[rank:].sum()), float(self.energy.sum())


class Whitened:
    """The groups of one layer; those that read the hidden side share a whitening."""

    def __init__(self) -> None:
        self._shared: Whitening | None = None

    def decompose(self, sides: Sides, vectors: bool = True) -> Decomposed:
        """Of one group, to be kept; no step of the paper's recipe wants energies alone."""
        if sides.reads_smaller:
            found = svd.eigen_by_input(sides.weight, self._whitening(sides))
        else:
            found = svd.eigen_by_output(sides.weight, sides.written())
        return Decomposed(found.values, found.vectors, (found.relative_ridge,))

    def restore(self, sides: Sides, kept: Decomposed) -> InputWhitened:
        """What the group is truncated with."""
        whitening = self._whitening(sides) if sides.reads_smaller else None
        return InputWhitened(sides, svd.Eigen(kept.energy, kept.vectors, *kept.numbers), whitening)

    def _whitening(self, sides: Sides) -> Whitening:
        if sides.groups.narrow:
            return whiten(sides.read())
        self._shared = self._shared or whiten(sides.read())
        return self._shared
