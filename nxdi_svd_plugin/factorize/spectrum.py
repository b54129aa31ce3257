"""Two-sided whitening: truncate W where the loss of the model, not only the output, changes least.

With C = E[x x^T] over the inputs and G = E[g g^T] over the loss gradients at the output, the Kronecker-factored
second-order change of the loss caused by W -> W' (both [in, out], y = x W) is, in nats per token,

    loss = 1/2 tr(C D G D^T),  D = W - W'.

W' of rank r that minimises it is S_C^-T [S_C^T W S_G]_r S_G^-1 with C = S_C S_C^T and G = S_G S_G^T, and the loss is
half the sum of the dropped squared singular values. In an MLP one side of every projection is the hidden dimension H
(the near side: the input of gate and up, the output of down) and the other the intermediate dimension I (the far
side). The squared singular values are the eigenvalues of one H x H matrix,

    K = S^T P S,   near = S S^T,   P = W far W^T  (gate, up)   or   P = W^T far W  (down),

and the far matrix is needed inside P only. P is itself a covariance of H-vectors, W g for gate and up, W^T x = y for
down, so it is accumulated directly and no I x I matrix is ever formed. With far = identity the objective is the input
whitening of Eq. 3 (gate, up). Sources: paper section 4.1; the Kronecker-factored curvature of K-FAC (Martens and Grosse
2015, arXiv:1503.05671).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.panels import symmetric, times_lower, times_lower_transposed

PRECISION = torch.float64


@dataclass(frozen=True)
class Spectrum:
    """Everything a truncation at any rank needs.

    energy: [H] squared singular values, descending, twice the nats per token that dropping each one costs.
    basis: [H, H] the eigenvectors of K in the same order, as columns.
    root: [H, H] lower-triangular S with near + ridge = S S^T.
    ridge: what was added to the diagonal of near; `far_ridge`: what was added to the diagonal of far.
    relative_ridge: `ridge` as a multiple of the mean of that diagonal; None when it was zero.
    """

    energy: Tensor
    basis: Tensor
    root: Tensor
    ridge: float
    far_ridge: float
    relative_ridge: float | None

    def loss(self, rank: int) -> float:
        """Predicted loss in nats per token of keeping `rank` directions."""
        return 0.5 * float(self.energy[rank:].sum())


def damp(near: Tensor, damping: float) -> tuple[Tensor, float]:
    """near + ridge I, with ridge = damping * mean diagonal, or the identity where there is no signal at all.

    The ridge is doubled until the Cholesky factorization exists. Returns the Cholesky root and the ridge.
    Raises:
        SvdError: `near` is not finite.
    """
    if not torch.isfinite(near).all():
        raise SvdError("two-sided whitening got a covariance with non-finite entries")
    size, mean = near.shape[0], float(near.diagonal().mean())
    if mean <= 0.0:
        return torch.eye(size, dtype=near.dtype, device=near.device), 1.0
    ridge = max(damping, torch.finfo(near.dtype).eps * size) * mean
    while True:
        damped = near.clone()
        damped.diagonal().add_(ridge)
        root, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return root, ridge
        ridge *= 2.0


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    On a processor they are numpy's: its OpenBLAS takes two thirds of the time of torch's MKL for 4096 dimensions.
    """
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
    else:
        values, vectors = map(torch.from_numpy, np.linalg.eigh(matrix.numpy()))
    return values, vectors


def spectrum(
    near: Tensor,
    projected: Tensor,
    gram: Tensor,
    far_trace: float,
    damping: float,
    damped: tuple[Tensor, float] | None = None,
    vectors: bool = True,
) -> Spectrum:
    """Squared singular values and vectors of the two-sided whitened weight.

    Args:
        near: [H, H] covariance of the near side, per token.
        projected: [H, H] P = W far W^T (gate, up) or W^T far W (down), per token.
        gram: [H, H] W W^T or W^T W, what the far side's ridge multiplies.
        far_trace: mean diagonal of the far side, per token. Where it or `near` is zero the projection changes no loss:
            the basis is that of an identity on that side, and the energy is zero.
        damping: relative ridge of both sides, the larger the closer to plain SVD.
        damped: what `damp` makes of near, where that is known.
        vectors: otherwise the basis has no columns; energies alone take a third of the time.
    """
    near = near.to(PRECISION)
    root, ridge = damped or damp(near, damping)
    far_ridge = _far_ridge(far_trace, damping)
    kernel = _kernel(root, projected, gram, far_ridge)
    energy, basis = eigh(kernel) if vectors else (torch.linalg.eigvalsh(kernel), kernel[:, :0])
    mean = float(near.diagonal().mean())
    relative = ridge / mean if mean > 0 else None
    return Spectrum(_descending(energy, mean, far_trace), basis.flip(1), root, ridge, far_ridge, relative)


def _far_ridge(far_trace: float, damping: float) -> float:
    return damping * far_trace if far_trace > 0.0 else 1.0


def _kernel(root: Tensor, projected: Tensor, gram: Tensor, far_ridge: float) -> Tensor:
    """K = S^T (P + ridge W W^T) S."""
    inner = projected.to(PRECISION) + far_ridge * gram.to(PRECISION)
    return symmetric(root, times_lower(inner, root))


def _descending(values: Tensor, near_mean: float, far_trace: float) -> Tensor:
    return values.flip(0).clamp_min(0.0) * (near_mean > 0.0 and far_trace > 0.0)


def truncate(weight: Tensor, spec: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """Optimal factors with the near side on the left: weight [H, I] ~ u [H, r] @ v [r, I].

    u = S^-T Q_r and v = Q_r^T S^T W. For down pass W^T and transpose both results: W' = v^T u^T.
    """
    kept = spec.basis[:, :rank]
    return near_factor(spec, kept), whitened_coordinates(weight, spec, kept)


def near_factor(spec: Spectrum, directions: Tensor) -> Tensor:
    """u = S^-T Q [H, q] for some columns Q of the basis."""
    u: Tensor = torch.linalg.solve_triangular(spec.root.T, directions, upper=True)
    return u


def whitened_coordinates(weight: Tensor, spec: Spectrum, directions: Tensor) -> Tensor:
    """v = Q^T S^T W [q, I] in float64, from products in the precision of the weight."""
    precision = weight.dtype
    return (times_lower_transposed(directions.T.to(precision), spec.root.to(precision)) @ weight).to(PRECISION)


def projector(spec: Spectrum, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The part of W = u g W in some columns Q of the basis: u = S^-T Q [H, q] and g = Q^T S^T [q, H]."""
    return near_factor(spec, directions), times_lower_transposed(directions.T, spec.root)


def truncate_turned(weight: Tensor, spec: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """The same from the spectrum of the transposed problem, that of [I, H] with the far side's root T: for I < H.

    W T = U s V^T with both sides whitened, so u = W T V_r s^-1 and v = s V_r^T T^-1 up to the basis of `truncate`.
    """
    v, u = truncate(weight.T, spec, rank)
    size = spec.energy[:rank].sqrt()
    size = size.clamp_min(1e-6 * float(size.max())) if float(size.max()) > 0 else torch.ones_like(size)
    return u.T / size, (v * size).T
