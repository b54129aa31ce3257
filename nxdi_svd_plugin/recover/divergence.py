"""The distillation loss: how far the model's next-token distributions are from the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = {"cpu": 32, "cuda": 512}
"""Positions at once, by device: a CPU's cache holds their float32 distributions, a GPU has enough to do."""


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over positions of KL(teacher || model) = sum_v p_v (log p_v - log q_v), in nats.

    The softmaxes are taken in float32, a few positions at a time; the gradient q - p is made with them and kept in the
    type of `logits`, so no further copy of them is made in float32.

    Args:
        logits, target: of the model (log q) and of the teacher (log p), [..., vocabulary], up to a constant.
    """
    loss: Tensor = _Divergence.apply(logits.flatten(0, -2), target.flatten(0, -2))  # type: ignore[no-untyped-call]
    return loss


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        gradient, total = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float32)
        pieces = (torch.split(whole, ROWS[logits.device.type]) for whole in (logits, target, gradient))
        for model, teacher, change in zip(*pieces, strict=True):
            log_q, log_p = model.float().log_softmax(-1), teacher.float().log_softmax(-1)
            p = log_p.exp()
            total += torch.sum(p * (log_p - log_q))
            change.copy_(log_q.exp() - p)
        ctx.save_for_backward(gradient)
        return total / len(logits)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (outer / len(gradient)), None
