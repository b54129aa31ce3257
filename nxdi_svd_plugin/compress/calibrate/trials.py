"""A text through the model with one layer changed at a time, all changes in one pass over the layers.

The file of a layer boundary holds the hidden states of the dense model there, window by window, and after them a copy
for every change of an earlier layer. At its own layer a change begins from the dense states; at the head every copy
shows KL(dense || changed). So every layer is loaded once, whatever the number of changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nxdi_svd_plugin.compress.calibrate.gradient import Head
from nxdi_svd_plugin.compress.calibrate.layer import decode_together
from nxdi_svd_plugin.compress.calibrate.sizes import AT_ONCE


def copies(layer: int) -> str:
    """Name of the working file with the states of the dense model and of all copies at the inputs of a layer."""
    return f"copies-{layer:05d}"


@contextmanager
def changed(mlp: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, these projections [out, in] of a transformers MLP have other weights, in the dtype of theirs."""
    kept = {name: getattr(mlp, name).weight for name in weights}
    try:
        for name, weight in weights.items():
            getattr(mlp, name).weight = nn.Parameter(weight.to(kept[name]), requires_grad=False)
        yield
    finally:
        for name, weight in kept.items():
            getattr(mlp, name).weight = weight


@torch.no_grad()
def through(model: Any, windows: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Windows [length, hidden] through the layer, AT_ONCE tokens together."""
    together: list[Tensor] = []
    for window in windows:
        together.append(window.to(device))
        if len(together) * len(window) >= AT_ONCE:
            yield from decode_together(model, torch.stack(together))
            together = []
    if together:
        yield from decode_together(model, torch.stack(together))


@torch.no_grad()
def divergences(head: Head, dense: Tensor, others: Iterable[Tensor]) -> list[float]:
    """Sum over the tokens of one window of KL(dense || other), for every other; all [length, hidden].

    With logits a and b and p = softmax(a) it is sum p (a - b) + lse(b) - lse(a), whose rounding is that of float32
    logits, about 1e-6 a token.
    """
    a = head.logits(dense)
    p, lse = a.softmax(-1), a.logsumexp(-1)
    found = []
    for other in others:
        b = head.logits(other.to(dense.device))
        lost = b.logsumexp(-1) - lse
        lost -= b.sub_(a).mul_(p).sum(-1)
        found.append(float(lost.to(torch.float64).sum()))
    return found
