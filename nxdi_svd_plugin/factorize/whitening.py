"""Eq. 2-3: a square root of the input covariance, C + ridge I = S S^T, with the smallest ridge that works.

Few tokens or dead channels make C singular. Then S has no inverse, so a multiple of the identity is added: the smallest
of a ladder of multiples of the mean variance for which the Cholesky factor exists and is well enough conditioned to be
inverted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nxdi_svd_plugin.errors import CalibrationError

RIDGES = (0.0, *(10.0**-k for k in range(12, 1, -1)))
"""Ridges that are tried, as multiples of the mean variance."""
SMALLEST_PIVOT = 1e-13
"""Smallest accepted ratio of squared Cholesky pivots: cond(S) stays near 3e6, so S S^-1 is exact to about 1e-9."""


@dataclass(frozen=True)
class Whitening:
    """S, lower triangular [n, n] in float64, with S S^T = C + ridge * I.

    relative_ridge: the ridge as a multiple of the mean variance tr(C) / n: 0 when C was used as it is, None when C is
    zero and S = I leaves the weight alone to decide.
    """

    root: torch.Tensor
    relative_ridge: float | None


def whiten(covariance: torch.Tensor) -> Whitening:
    """The Cholesky factor of `covariance` + ridge I for the smallest ridge of `RIDGES` that works.

    A zero covariance (the channel never fires) gives S = I: plain truncation of the weight.

    Args:
        covariance: symmetric [n, n], float64.
    Raises:
        CalibrationError: the covariance is not finite.
    """
    if not torch.isfinite(covariance).all():
        raise CalibrationError(
            "the covariance of the calibration activations is not finite; the model overflows on this text: "
            "check the weights and the calibration text"
        )
    scale = float(covariance.diagonal().mean())
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    if scale <= 0:
        return Whitening(identity, None)
    for relative in RIDGES:
        root, failed = torch.linalg.cholesky_ex(covariance + relative * scale * identity)
        if not failed and _well_conditioned(root):
            return Whitening(root, relative)
    raise CalibrationError(
        f"the covariance of the calibration activations has negative eigenvalues below {RIDGES[-1]} of its mean: "
        "it is not the covariance of real activations"
    )


def _well_conditioned(root: torch.Tensor) -> bool:
    pivots = root.diagonal().square()
    return bool(pivots.min() >= SMALLEST_PIVOT * pivots.max())
