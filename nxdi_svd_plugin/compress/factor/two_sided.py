"""The two-sided objectives: a spectrum of the model's loss, or of the output error alone without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.factor.sides import Decomposed, Sides
from nxdi_svd_plugin.compress.forms import Truncation
from nxdi_svd_plugin.factorize.spectrum import Spectrum, damp, output_energies, spectrum, truncate, truncate_turned
from nxdi_svd_plugin.recipe import Recipe

UNDAMPED = 1e-12
"""Damping of the input objective: the paper's whitening has none; the ridge only grows where Cholesky needs it."""
NO_RIDGE = 1e-300
"""Of the other side there."""


@dataclass(frozen=True)
class TwoSided:
    """One group of a projection. near, far: `Sides.output`."""

    sides: Sides
    spectrum: Spectrum
    near: Tensor
    far: Tensor

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
        cut = truncate_turned if self.sides.groups.narrow else truncate
        near, far = cut(self.sides.matrix.to(torch.float32), self.spectrum, rank)
        split = (near.norm(dim=0) / far.norm(dim=1).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        return Truncation(near, far, split)

    def loss(self, rank: int) -> float:
        """Half the dropped energy."""
        return self.spectrum.loss(rank)

    def output(self, rank: int) -> tuple[float, float]:
        """A mean over the calibration tokens."""
        return output_energies(self.spectrum, rank, self.near, self.far)


class DoublyWhitened:
    """The groups of one layer."""

    def __init__(self, recipe: Recipe) -> None:
        self._differentiates, self._damping = recipe.differentiates, recipe.damping

    def decompose(self, sides: Sides) -> Decomposed:
        """Of one group, to be kept."""
        if self._differentiates:
            gram = sides.gram(torch.float32)  # it only damps
            seen, trace = sides.seen()
            found = spectrum(sides.covariance(), seen, gram, trace, self._damping)
        else:
            gram = sides.gram(torch.float64)
            found = spectrum(*sides.output(lambda: gram), gram, NO_RIDGE, UNDAMPED)
        return Decomposed(found.energy, found.basis, (found.ridge, found.far_ridge, found.relative_ridge))

    def restore(self, sides: Sides, kept: Decomposed) -> TwoSided:
        """What the group is truncated with."""
        output = sides.output(lambda: sides.gram(torch.float32))  # of the report's error alone
        side, damping = (sides.covariance(), self._damping) if self._differentiates else (output[0], UNDAMPED)
        ridge, far_ridge, relative = kept.ridges
        found = Spectrum(kept.energy, kept.vectors, damp(side, damping)[0], ridge or 0.0, far_ridge or 0.0, relative)
        return TwoSided(sides, found, *output)
