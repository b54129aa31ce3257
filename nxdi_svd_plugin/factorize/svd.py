"""Eq. 3 and 6-8: the factors u, v that change a projection's outputs least on the calibration tokens.

The singular vectors come from one float64 eigendecomposition of the smaller Gram matrix of W S (Eq. 3), [hidden,
hidden] for every MLP projection, instead of a full SVD: the same factors at a fraction of the time and memory.

A torch weight W [out, in], y = W x, C = sum x x^T = S S^T:

* wide outputs (gate, up): W S = P Sigma Q^T, Gram S^T W^T W S = Q Sigma^2 Q^T; u = S^-T Q Sigma^1/2, v = Sigma^-1/2 Q^T
  S^T W^T.
* wide inputs (down): Gram W C W^T = sum y y^T = P Sigma^2 P^T, so the covariance of the *outputs* is all that is needed
  and the [in, in] covariance of the inputs never exists; u = W^T P Sigma^-1/2, v = Sigma^1/2 P^T.

The sum of the discarded Sigma^2 is the output error sum |y - y'|^2 over the calibration tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.factorize.whitening import RIDGES, SMALLEST_PIVOT, Whitening


@dataclass(frozen=True)
class Factors:
    """u [in, r] and v [r, out] in float64, and what was lost.

    spectrum: all singular values of W S squared, descending: output energy of each direction on the calibration tokens.
    relative_ridge: ridge on the input covariance as a multiple of the mean variance: 0 when there was none, None when
    the covariance is zero and the weight alone decided (the spectrum is then that of the weight).
    """

    u: torch.Tensor
    v: torch.Tensor
    spectrum: torch.Tensor
    relative_ridge: float | None

    @property
    def discarded(self) -> float:
        """Output error sum |y - y'|^2 over the calibration tokens: the sum of the discarded spectrum."""
        return float(self.spectrum[self.u.shape[1] :].sum())

    @property
    def relative_error(self) -> float:
        """sqrt(discarded / total output energy)."""
        total = float(self.spectrum.sum())
        return (self.discarded / total) ** 0.5 if total > 0 else 0.0


@dataclass(frozen=True)
class Eigen:
    """The eigendecomposition that every rank of one projection is cut from.

    values: [H] squared singular values of W S, descending. vectors: [H, H], as columns. relative_ridge: see Factors.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    relative_ridge: float | None


def eigen_by_input(weight: torch.Tensor, whitening: Whitening) -> Eigen:
    """Of S^T W^T W S, for `factor_by_input`."""
    w, root = weight.to(torch.float64), whitening.root
    return Eigen(*_eigh_descending(root.T @ (w.T @ w) @ root), whitening.relative_ridge)


def factor_by_input(weight: torch.Tensor, whitening: Whitening, rank: int, eigen: Eigen | None = None) -> Factors:
    """Best factors of `weight` given the whitened covariance of its inputs.

    Args:
        weight: [out, in] with out >= in, any float type.
        whitening: of the input covariance [in, in].
        rank: 1 to min(out, in).
        eigen: `eigen_by_input` of the same, if it is there already.
    """
    eigen = eigen or eigen_by_input(weight, whitening)
    w, root, q = weight.to(torch.float64), whitening.root, eigen.vectors
    scale = _split(eigen.values, rank)
    u = torch.linalg.solve_triangular(root.T, q[:, :rank], upper=True) * scale
    v = (w @ (root @ (q[:, :rank] / scale))).T
    return Factors(u, v, eigen.values, eigen.relative_ridge)


def eigen_by_output(weight: torch.Tensor, output_covariance: torch.Tensor) -> Eigen:
    """Of sum y y^T, for `factor_by_output`.

    Directions in which the outputs never move are ordered by the weight alone: a ridge on C, the smallest that orders
    them, adds ridge * W W^T.
    Raises:
        CalibrationError: the covariance is not finite.
    """
    if not torch.isfinite(output_covariance).all():
        raise CalibrationError(
            "the covariance of the calibration outputs is not finite; check the weights and the text"
        )
    return Eigen(*_ridged_eigh(output_covariance, weight.to(torch.float64)))


def factor_by_output(
    weight: torch.Tensor, output_covariance: torch.Tensor, rank: int, eigen: Eigen | None = None
) -> Factors:
    """Best factors of `weight` given the covariance of its outputs, sum y y^T = W C W^T.

    Args:
        weight: [out, in] with out <= in, any float type.
        output_covariance: [out, out], float64.
        rank: 1 to min(out, in).
        eigen: `eigen_by_output` of the same, if it is there already.
    Raises:
        CalibrationError: the covariance is not finite.
    """
    eigen = eigen or eigen_by_output(weight, output_covariance)
    w, p, scale = weight.to(torch.float64), eigen.vectors, _split(eigen.values, rank)
    return Factors(w.T @ (p[:, :rank] / scale), (p[:, :rank] * scale).T, eigen.values, eigen.relative_ridge)


def _ridged_eigh(covariance: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    values, p = _eigh_descending(covariance)
    if values[-1] > SMALLEST_PIVOT * values[0]:
        return values, p, 0.0
    weight_gram = w @ w.T
    scale = float(covariance.trace()) / max(float(weight_gram.trace()), torch.finfo(torch.float64).tiny)
    if scale == 0:
        return (*_eigh_descending(weight_gram), None)
    return (*_eigh_descending(covariance + RIDGES[1] * scale * weight_gram), RIDGES[1])


def _eigh_descending(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (descending, rounding below zero removed) and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _split(values: torch.Tensor, rank: int) -> torch.Tensor:
    """Sigma^1/2 of the kept directions; a vanishing one is raised to 1e-6 of the largest, which leaves u @ v as it
    is."""
    sigma = values[:rank].sqrt()
    largest = sigma[0] if sigma[0] > 0 else torch.ones_like(sigma[0])
    return sigma.clamp(min=1e-6 * float(largest)).sqrt()
