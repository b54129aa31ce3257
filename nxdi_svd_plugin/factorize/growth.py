"""The limit of the coefficients C of an interpolative form, where no exact choice of pivots bounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi_svd_plugin.factorize.dependent import DependentError


def limit_growth(kept: Tensor, c: Tensor, limit: float) -> Tensor:
    """`c` with no coefficient larger than `limit`; the same tensor where none is.

    In a column that has one, the largest is fixed at the limit and the others are chosen by least squares in
    |kept (c - c')|, kept [r, r], until all hold. With H = (keptᵀ kept)⁻¹, fixed rows F and their targets t that is
    c' = c - H[:, F] H[F, F]⁻¹ (c - t)[F].
    """
    wrong = torch.nonzero((c.abs() > limit).any(0)).flatten().tolist()
    if not wrong:
        return c
    inverse, singular = torch.linalg.inv_ex(kept)
    if int(singular):
        raise DependentError
    gram, result = inverse @ inverse.T, c.clone()
    for j in wrong:
        at: list[int] = []
        while float(result[:, j].abs().max()) > limit:
            at.append(int(result[:, j].abs().argmax()))
            target = result[at, j].clamp(-limit, limit)
            step, singular = torch.linalg.solve_ex(gram[at][:, at], c[at, j] - target)
            if int(singular) or not torch.isfinite(step).all():
                raise DependentError
            result[:, j] = c[:, j] - gram[:, at] @ step
            result[at, j] = target
    return result
