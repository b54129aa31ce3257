"""Muon: every matrix moves by its momentum with all singular values made about one.

The gradient of a factor has few large singular values; AdamW's step then grows along them and forbids a rate at which
the others learn. Source: K. Jordan 2024, kellerjordan.github.io/posts/muon; the scale is that of arXiv:2502.16982,
section 2.2, which makes the step's root mean square 0.2 x the rate. torch has the same optimizer from 2.9 on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.9
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: singular values of 1e-2 to 1 come to 0.7 to 1.2
ITERATIONS = 5
SMALL = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized: p -= rate * 0.2 sqrt(max(rows, columns)) * orthogonal(momentum of p).

    Args:
        parameters: matrices [rows, columns].
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    scale = group["lr"] * 0.2 * max(parameter.shape) ** 0.5
                    parameter.add_(orthogonal(self._moved(parameter)).to(parameter.dtype), alpha=-scale)

    def _moved(self, parameter: Tensor) -> Tensor:
        """The mean gradient, a step ahead."""
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean: Tensor = state["mean"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(mean, MOMENTUM)  # type: ignore[union-attr]


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix U diag(s) V^T, by a Newton-Schulz iteration in bfloat16; zero stays zero."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16).T if tall else matrix.to(torch.bfloat16)
    x = x / x.norm().clamp(min=SMALL)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
