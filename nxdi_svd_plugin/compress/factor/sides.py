"""One group of a projection from its smaller side: what is known of that side, and what it sees of the other.

A group is a matrix [H, I / g]. Its smaller side is the hidden one, or the neurons' where groups are narrow; then it is
turned, so that everything here is [a, a] with a the smaller side. The covariance of the larger side is seen through the
matrix: M cov M^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.products import quick_products
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics
from nxdi_svd_plugin.factorize.panels import symmetric
from nxdi_svd_plugin.stored.projection import READS, Side


@dataclass(frozen=True)
class Decomposed:
    """What is kept of the decomposition of one group.

    energy: [a], descending: what dropping each direction costs, in the objective's unit. vectors: [a, a], as columns.
    numbers: what else the objective needs to restore it; None where a ridge is relative to zero.
    """

    energy: Tensor
    vectors: Tensor
    numbers: tuple[float | None, ...]


@dataclass(frozen=True)
class Sides:
    """A group of a projection and its statistics. matrix: [H, I / g]."""

    groups: Groups
    statistics: Statistics
    name: str
    group: int
    matrix: Tensor

    @property
    def reads_smaller(self) -> bool:
        """Whether the smaller side is the one that the projection reads, not the one that it writes."""
        return (READS[self.name] is Side.HIDDEN) != self.groups.narrow

    @property
    def weight(self) -> Tensor:
        """torch's [out, in]."""
        weight: Tensor = READS[self.name].hidden_first(self.matrix)  # turned a second time
        return weight

    def gram(self, products: torch.dtype) -> Tensor:
        """M M^T in float64, with products and sums in `products`; bfloat16 weights lose nothing in quick ones."""
        m = self._turned(products)
        with quick_products():
            return symmetric(m.T, m.T).to(torch.float64)

    def covariance(self) -> Tensor:
        """Of the smaller side in the loss: of what is read there, or of the gradient of what is written there."""
        if self.groups.narrow:
            return self.statistics.far(self.name, self.group)
        return self.statistics.near(self.name)

    def seen(self) -> tuple[Tensor, float]:
        """That of the larger side in the loss, through the matrix, and the mean of its own diagonal."""
        if self.groups.narrow:
            near = self.statistics.near(self.name)
            return self._through(near), float(near.diagonal().mean())
        neurons = list(self.groups.slices())[self.group]
        return self.statistics.far(self.name, self.group), self.statistics.far_trace(self.name, neurons)

    def read(self) -> Tensor:
        """x x^T of what is read, where that is the smaller side."""
        return self.statistics.far(self.name, self.group) if self.groups.narrow else self.statistics.inputs

    def written(self) -> Tensor:
        """y y^T of what is written, where that is the smaller side."""
        return (
            self._through(self.statistics.inputs) if self.groups.narrow else self.statistics.far(self.name, self.group)
        )

    def weighing(self) -> Tensor:
        """How the output weighs the smaller side: the covariance of what is read there, or the identity."""
        if self.reads_smaller:
            return self.read()
        side = self.groups.part if self.groups.narrow else self.groups.hidden
        return torch.eye(side, dtype=torch.float64, device=self.matrix.device)

    def output(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances of the two sides, the second through the matrix, whose product is the energy of the output."""
        return self.weighing(), gram if self.reads_smaller else self.written()

    def dropped_output(self, u: Tensor, g: Tensor) -> float:
        """The energy of what an output loses with u g M of its matrix M, u [a, d] and g [d, a]."""
        if not self.reads_smaller:
            return float(((u.T @ u) * (g @ self.written() @ g.T)).sum())
        dropped = g.to(torch.float32) @ self._turned(torch.float32)
        return float(((u.T @ self.read() @ u) * (dropped @ dropped.T)).sum())

    def _turned(self, dtype: torch.dtype) -> Tensor:
        """M, the matrix with its smaller side first."""
        return (self.matrix.T if self.groups.narrow else self.matrix).to(dtype)

    def _through(self, covariance: Tensor) -> Tensor:
        m = self._turned(covariance.dtype)
        return m @ covariance @ m.T
