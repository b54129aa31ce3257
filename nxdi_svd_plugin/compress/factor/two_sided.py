"""The two-sided objectives: a spectrum of the model's loss, or of the output error alone without gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate.statistics import NEAR
from nxdi_svd_plugin.compress.factor.sides import Decomposed, Sides
from nxdi_svd_plugin.compress.forms import Factors, Truncation
from nxdi_svd_plugin.factorize.spectrum import (
    PRECISION,
    Spectrum,
    damp,
    near_factor,
    projector,
    spectrum,
    truncate_turned,
    whitened_coordinates,
)
from nxdi_svd_plugin.recipe import Recipe

UNDAMPED = 1e-12
"""Damping of the input objective: the paper's whitening has none; the ridge only grows where Cholesky needs it."""
NO_RIDGE = 1e-300
"""Of the other side there."""


@dataclass(frozen=True)
class Deflated:
    """W' = W - u g W of one group, W [H, n], with the projector u [H, d], g [d, H] on what was dropped.

    Its factors are u of what was kept and `far`; only a form that stores that u pays for it. kept: [H, r].
    """

    spectrum: Spectrum
    matrix: Tensor
    kept: Tensor
    far: Tensor
    dropped: tuple[Tensor, Tensor]

    @cached_property
    def near(self) -> Tensor:
        """[H, r]."""
        return near_factor(self.spectrum, self.kept)

    @property
    def split(self) -> Tensor:
        """Of equal norms."""
        return balance(self.near, self.far)

    def columns(self, at: Tensor) -> Tensor:
        """[H, len(at)] of W'."""
        u, g = self.dropped
        if len(g) > len(self.far):
            return self.near @ self.far[:, at]
        whole = self.matrix[:, at].to(PRECISION)
        return whole - u @ (g @ whole)


@dataclass(frozen=True)
class TwoSided:
    """One group of a projection. size: the energy of its output, a mean over the calibration tokens."""

    sides: Sides
    spectrum: Spectrum
    size: float
    _projectors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def energy(self) -> Tensor:
        """Twice the nats per token that each direction costs."""
        return self.spectrum.energy

    @property
    def relative_ridge(self) -> float | None:
        """On the covariance of the smaller side."""
        return self.spectrum.relative_ridge

    def truncated(self, rank: int) -> Truncation:
        """near and whitened coordinates, with float32 products of the weight; a pair balances its norms."""
        weight = self.sides.matrix.to(torch.float32)
        if self.sides.groups.narrow:
            near, far = truncate_turned(weight, self.spectrum, rank)
            return Factors(near, far, balance(near, far))
        kept = self.spectrum.basis[:, :rank]
        far = whitened_coordinates(weight, self.spectrum, kept)
        return Deflated(self.spectrum, self.sides.matrix, kept, far, self._dropped(rank))

    def loss(self, rank: int) -> float:
        """Half the dropped energy."""
        return self.spectrum.loss(rank)

    def output(self, rank: int) -> tuple[float, float]:
        """A mean over the calibration tokens."""
        return self.sides.dropped_output(*self._dropped(rank)), self.size

    def _dropped(self, rank: int) -> tuple[Tensor, Tensor]:
        if rank not in self._projectors:
            self._projectors[rank] = projector(self.spectrum, self.spectrum.basis[:, rank:])
        return self._projectors[rank]


def balance(near: Tensor, far: Tensor) -> Tensor:
    """[r] by which a pair divides near and multiplies far, so that their norms are equal."""
    ratio: Tensor = near.norm(dim=0) / far.norm(dim=1).clamp_min(1e-300)
    return ratio.clamp_min(1e-300).sqrt()


class DoublyWhitened:
    """The groups of one layer; those that share a smaller side share its Cholesky root."""

    def __init__(self, recipe: Recipe) -> None:
        self._differentiates, self._damping = recipe.differentiates, recipe.damping
        self._root: tuple[str, tuple[Tensor, float]] | None = None

    def decompose(self, sides: Sides, vectors: bool = True) -> Decomposed:
        """Of one group, to be kept: its ridges and the energy of its output as numbers."""
        gram = sides.gram(torch.float32 if self._differentiates else torch.float64)  # with gradients it only damps
        near, far = sides.output(gram)
        if self._differentiates:
            seen, trace = sides.seen()
            covariance = sides.covariance()
            damped = self._damped(sides, covariance)
            found = spectrum(covariance, seen, gram, trace, self._damping, damped, vectors)
        else:
            found = spectrum(near, far, gram, NO_RIDGE, UNDAMPED, vectors=vectors)
        size = float((near * far).sum())
        return Decomposed(found.energy, found.basis, (found.ridge, found.far_ridge, found.relative_ridge, size))

    def restore(self, sides: Sides, kept: Decomposed) -> TwoSided:
        """What the group is truncated with."""
        ridge, far_ridge, relative, size = kept.numbers
        if self._differentiates:
            root, _ = self._damped(sides, sides.covariance())
        else:
            root, _ = damp(sides.weighing(), UNDAMPED)
        found = Spectrum(kept.energy, kept.vectors, root, ridge or 0.0, far_ridge or 0.0, relative)
        return TwoSided(sides, found, size or 0.0)

    def _damped(self, sides: Sides, covariance: Tensor) -> tuple[Tensor, float]:
        """The root and ridge of a smaller side; the last one is kept."""
        of = f"{sides.name} {sides.group}" if sides.groups.narrow else NEAR[sides.name]
        if self._root is None or self._root[0] != of:
            self._root = of, damp(covariance.to(PRECISION), self._damping)
        return self._root[1]
