"""The linear layer y = x @ u @ v, and putting it in the place of dense MLP projections."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from nxdi_svd_plugin.modeling.low_rank_linear import InterpolativeLinear
from nxdi_svd_plugin.stored.layers import PROJECTIONS, Projection


class FactoredLinear(nn.Module):
    """y = x @ u @ v, without bias; stands for a dense weight [out, in] = (u @ v).T.

    u: [in, rank], v: [rank, out], in torch's default dtype. Both are drawn like nn.Linear's weight, uniform within
    1/sqrt(fan in), until they are loaded.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.u = nn.Parameter(torch.empty(in_features, rank))
        self.v = nn.Parameter(torch.empty(rank, out_features))
        for factor in (self.u, self.v):
            bound = 1 / math.sqrt(factor.shape[0])
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] to [..., out]."""
        return x @ self.u @ self.v

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def install_factors(mlps: Mapping[int, nn.Module], layers: Mapping[int, Mapping[str, Projection]]) -> None:
    """Replace the projections of each MLP that `layers` says are not dense.

    Args:
        mlps: layer number to a module with gate_proj, up_proj and down_proj, all nn.Linear.
        layers: layer number to projection name to its form.
    """
    for i, mlp in mlps.items():
        for name in PROJECTIONS:
            projection, dense = layers[i][name], getattr(mlp, name)
            if projection.form == "factored":
                setattr(mlp, name, FactoredLinear(dense.in_features, dense.out_features, projection.rank))
            elif projection.form == "interpolative":
                setattr(mlp, name, InterpolativeLinear(dense.in_features, dense.out_features, projection))
