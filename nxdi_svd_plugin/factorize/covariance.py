"""Eq. 2: the covariance of a matrix's inputs (or outputs), C = sum over tokens of x x^T, in float64."""

from __future__ import annotations

import torch


def empty(size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A zero covariance [size, size] in float64."""
    return torch.zeros(size, size, dtype=torch.float64, device=device)


def accumulate(covariance: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x to `covariance` in place.

    Args:
        covariance: float64 [n, n].
        x: activations [..., n] of any float type; every leading axis counts as tokens.
    """
    tokens = x.reshape(-1, x.shape[-1]).to(torch.float64)
    covariance.addmm_(tokens.T, tokens)
