"""Least squares by the normal equations, for unknowns that are a small change of what is there."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.spectrum import PRECISION


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """D [n, m] that minimizes |A D - B|^2 from A^T A [n, n] and A^T B [n, m], by Cholesky.

    The diagonal of A^T A is raised by its rounding, and further only where it is singular to that; zero gives zero.

    Args:
        gram: float64; its diagonal is overwritten.
    Raises:
        SvdError: `gram` or `cross` is not finite.
    """
    ridge = torch.finfo(PRECISION).eps * float(gram.diagonal().sum())
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise SvdError("the sums of a refit are not finite; check the calibration text with `nxdi-svd evaluate`")
    if ridge <= 0.0:
        return torch.zeros_like(cross)
    while True:
        gram.diagonal().add_(ridge)
        root, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            return torch.cholesky_solve(cross, root)
        ridge *= 2.0
