"""The eigendecomposition of a layer's projections: made once, from statistics that are read once, and kept on disk.

`decompose` gives what is kept: energies and eigenvectors, and those statistics that the factors need again. `restore`
makes of it what a projection is truncated with at any rank: by the paper's formulas (Eq. 2-8) for the paper's recipe,
by the two-sided ones (factorize/spectrum.py) for the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate.products import quick_products
from nxdi_svd_plugin.compress.calibrate.statistics import KEPT, Statistics
from nxdi_svd_plugin.compress.forms import Truncation
from nxdi_svd_plugin.factorize import svd
from nxdi_svd_plugin.factorize.spectrum import Spectrum, damp, output_error, spectrum, truncate
from nxdi_svd_plugin.factorize.whitening import Whitening, whiten
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.projection import READS, Side

UNDAMPED = 1e-12
"""Damping of the input objective: the paper's whitening has none; the ridge only grows where Cholesky needs it."""
Measured = dict[str, float | None]


class Decomposition(Protocol):
    """What a projection is truncated with."""

    @property
    def energy(self) -> Tensor:
        """[H], descending: what dropping each direction costs, in the objective's unit."""

    def truncated(self, weight: Tensor, rank: int) -> Truncation:
        """The best matrix of this rank; `weight` is torch's [out, in]."""

    def measured(self, rank: int) -> Measured:
        """The numbers of the report at this rank."""


@dataclass(frozen=True)
class InputWhitened:
    """The paper's: Eq. 2-3 with the sums over all tokens, Eq. 6-8 to split the singular values."""

    reads: Side
    eigen: svd.Eigen
    whitening: Whitening | None

    @property
    def energy(self) -> Tensor:
        """Output error over the calibration tokens."""
        return self.eigen.values

    def truncated(self, weight: Tensor, rank: int) -> Truncation:
        """u, v of the paper as near and far."""
        if self.whitening is not None:
            found = svd.factor_by_input(weight, self.whitening, rank, self.eigen)
            return Truncation(found.u, found.v, None)
        found = svd.factor_by_output(weight, torch.empty(0), rank, self.eigen)
        return Truncation(found.v.T, found.u.T, None)

    def measured(self, rank: int) -> Measured:
        """Discarded and total output energy, and the error that they make."""
        total, discarded = float(self.energy.sum()), float(self.energy[rank:].sum())
        return {
            "relative_error": (discarded / total) ** 0.5 if total > 0 else 0.0,
            "discarded": discarded,
            "energy": total,
            "relative_ridge": self.eigen.relative_ridge,
        }


@dataclass(frozen=True)
class TwoSided:
    """A spectrum of the model's loss, in twice the nats per token.

    near, far: undamped covariances whose product measures the output error (factorize.spectrum.output_error).
    """

    reads: Side
    spectrum: Spectrum
    near: Tensor
    far: Tensor

    @property
    def energy(self) -> Tensor:
        """Twice the nats per token that each direction costs."""
        return self.spectrum.energy

    def truncated(self, weight: Tensor, rank: int) -> Truncation:
        """near and whitened coordinates, with float32 products of the weight; a pair balances its norms."""
        near, far = truncate(self.reads.hidden_first(weight).to(torch.float32), self.spectrum, rank)
        split = (near.norm(dim=0) / far.norm(dim=1).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
        return Truncation(near, far, split)

    def measured(self, rank: int) -> Measured:
        """Energies in nats per token, and the output error on the calibration tokens."""
        return {
            "relative_error": output_error(self.spectrum, rank, self.near, self.far),
            "discarded": float(self.energy[rank:].sum()),
            "energy": float(self.energy.sum()),
            "relative_ridge": self.spectrum.relative_ridge,
            "predicted_loss": self.spectrum.loss(rank),
        }


def decompose(
    recipe: Recipe, sums: Statistics, tokens: int, weights: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """What is kept of a layer: `<projection>.energy`, `.vectors` and `.ridges`, and the statistics of KEPT.

    Args:
        sums: over all tokens. weights: (projection, torch weight [out, in]) of those that may become low rank.
    """
    kept = {name: sums.sums[name] for name in KEPT if name in sums.sums}
    one = _whitened(sums) if recipe.is_paper else _two_sided(recipe, sums.per_token(tokens))
    for name, weight in weights:
        energy, vectors, ridges = one(name, weight)
        kept |= {f"{name}.energy": energy, f"{name}.vectors": vectors}
        kept[f"{name}.ridges"] = torch.tensor([torch.nan if r is None else r for r in ridges], dtype=torch.float64)
    return kept


Decomposed = tuple[Tensor, Tensor, list[float | None]]
"""Energies, eigenvectors and ridges of one projection."""


def _whitened(sums: Statistics) -> Callable[[str, Tensor], Decomposed]:
    """The paper's, with one whitening for gate and up."""
    shared = functools.cache(lambda: whiten(sums.inputs))

    def one(name: str, weight: Tensor) -> Decomposed:
        by_input = READS[name] is Side.HIDDEN
        found = svd.eigen_by_input(weight, shared()) if by_input else svd.eigen_by_output(weight, sums.outputs)
        return found.values, found.vectors, [found.relative_ridge]

    return one


def _two_sided(recipe: Recipe, means: Statistics) -> Callable[[str, Tensor], Decomposed]:
    def one(name: str, weight: Tensor) -> Decomposed:
        found = layer_spectrum(recipe, name, weight, means)
        return found.energy, found.basis, [found.ridge, found.far_ridge, found.relative_ridge]

    return one


def layer_spectrum(recipe: Recipe, name: str, weight: Tensor, means: Statistics) -> Spectrum:
    """The objective's spectrum of one projection; `weight` is torch's [out, in], the means are per token.

    The near side is the hidden dimension: the input of gate and up, the output of down.
    """
    if not recipe.differentiates:
        gram = _gram(READS[name], weight, torch.float64)
        return spectrum(*_plain(READS[name], lambda: gram, means), gram, 1e-300, UNDAMPED)
    gram = _gram(READS[name], weight, torch.float32)  # it only damps
    return spectrum(means.near(name), means.projected(name), gram, means.far_trace(name), recipe.damping)


def restore(recipe: Recipe, kept: Mapping[str, Tensor], tokens: int, name: str, weight: Tensor) -> Decomposition:
    """The decomposition of one projection out of what `decompose` gave."""
    reads, energy, vectors = READS[name], kept[f"{name}.energy"], kept[f"{name}.vectors"]
    ridges = [None if r != r else r for r in kept[f"{name}.ridges"].tolist()]
    needed = ("inputs",) if reads is Side.HIDDEN else ("outputs", "down_gradients")
    sums = Statistics({key: kept[key] for key in needed if key in kept})
    if recipe.is_paper:
        whitening = whiten(sums.inputs) if reads is Side.HIDDEN else None
        return InputWhitened(reads, svd.Eigen(energy, vectors, *ridges), whitening)
    means = sums.per_token(tokens)
    plain = _plain(reads, lambda: _gram(reads, weight, torch.float32), means)  # of the report's error alone
    near, damping = (means.near(name), recipe.damping) if recipe.differentiates else (plain[0], UNDAMPED)
    found = Spectrum(energy, vectors, damp(near, damping)[0], ridges[0] or 0.0, ridges[1] or 0.0, ridges[2])
    return TwoSided(reads, found, *plain)


def _plain(reads: Side, gram: Callable[[], Tensor], means: Statistics) -> tuple[Tensor, Tensor]:
    """Undamped near and far whose product is the output energy: E[x x^T] and W W^T, or the identity and E[y y^T]."""
    if reads is Side.HIDDEN:
        return means.inputs, gram()
    eye = torch.eye(len(means.outputs), dtype=means.outputs.dtype, device=means.outputs.device)
    return eye, means.outputs


def _gram(reads: Side, weight: Tensor, products: torch.dtype) -> Tensor:
    """W W^T [H, H] in float64, with products and sums in `products`; bfloat16 weights lose nothing in quick ones."""
    wide: Tensor = reads.hidden_first(weight).to(products)
    with quick_products():
        return (wide @ wide.T).to(torch.float64)
