"""W_k F_kk W_k^T of the neurons that stay, when only W F W^T and the diagonal of F are known.

F [I, I] is the covariance of gradients g at the neurons, W [H, I] their weights with more neurons than H, P = W F W^T.
With independent neurons of the known variances D as prior, the gradients of which P is the covariance of p = W g are
g = D W^T C^-1 p in the mean, C = W D W^T, and vary by D - D W^T C^-1 W D around it. What the dropped neurons d add to p
is then X p in the mean, X = C_d C^-1 with C_d = W_d D_d W_d^T, and

    W_k F_kk W_k^T = (I - X) P (I - X)^T + C_d - X C_d.

With C_d = L L^T for L = W_d D_d^1/2 and Y = C^-1 L that is

    P - P Y L^T - L Y^T P + L (Y^T (P Y - L) + I) L^T,

which is little work where few are dropped. It is P where nothing is dropped, exact where F is diagonal, and positive
semidefinite. Source: the conditional mean and covariance of Gaussian vectors, e.g. Bishop 2006, Pattern Recognition and
Machine Learning, Eq. 2.81-2.82.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi_svd_plugin.factorize.spectrum import PRECISION

RIDGE = 1e-9  # of C in units of its mean diagonal; neurons without a gradient may leave it singular


def seen_by_kept(projected: Tensor, weight: Tensor, squares: Tensor, kept: Tensor) -> Tensor:
    """W_k F_kk W_k^T as above.

    Args:
        projected: [H, H] W F W^T. weight: [H, I]; its products have its precision. squares: [I], the diagonal of F.
        kept: [k].
    """
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    if not gone.any() or not bool(squares.sum() > 0):
        return projected
    whole = ((weight * squares.to(weight.dtype)) @ weight.T).to(PRECISION)
    size = float(whole.diagonal().mean())
    if not size > 0:  # zero weights wherever there is a gradient
        return projected
    whole.diagonal().add_(RIDGE * size)
    lost = (weight[:, gone] * squares[gone].sqrt().to(weight.dtype)).to(PRECISION)  # C_d is lost lost^T
    share = torch.linalg.solve(whole, lost)  # X is lost share^T
    seen = projected.to(PRECISION) @ share
    varies = share.T @ (seen - lost)
    varies.diagonal().add_(1.0)
    cross = (seen - lost @ varies / 2) @ lost.T
    found: Tensor = projected.to(PRECISION) - cross - cross.T
    return found
