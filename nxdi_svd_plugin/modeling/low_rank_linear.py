"""The linear layer of the interpolative form: some intermediate neurons are kept, the others are combinations of them.

Only slices, concatenations and products: the order of the intermediate dimension makes every pivot set a few runs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from nxdi_svd_plugin.stored.layers import Projection, pivots_on_output, tensor_shapes
from nxdi_svd_plugin.stored.order import complement


class InterpolativeLinear(nn.Module):
    """y = x @ W without bias, W of rank r in r (in + out - r) numbers; see `svd_config.Projection` for the tensors.

    Gate and up (pivots among the outputs): z = x @ u, and y has z at the pivots and z @ c elsewhere.
    Down (pivots among the inputs): y = (x at the pivots + x elsewhere @ c) @ v.

    Args:
        in_features, out_features: of the whole projection.
        projection: form "interpolative".
    """

    u: nn.Parameter
    c: nn.Parameter
    v: nn.Parameter

    def __init__(self, in_features: int, out_features: int, projection: Projection) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, projection.rank
        self.on_output = pivots_on_output(in_features, out_features)
        self.pivots = projection.pivots
        self.others = complement(projection.pivots, max(in_features, out_features))
        for name, shape in tensor_shapes(projection, in_features, out_features).items():
            factor = nn.Parameter(torch.empty(shape))
            bound = 1 / math.sqrt(max(shape[0], 1))
            self.register_parameter(name, factor)
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] to [..., out]."""
        if self.on_output:
            kept = x @ self.u
            return merge_runs(kept, kept @ self.c, self.pivots, self.others)
        return (take_runs(x, self.pivots) + take_runs(x, self.others) @ self.c) @ self.v

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, form=interpolative"


def take_runs(x: torch.Tensor, runs: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """The columns of x [..., n] in `runs`."""
    parts = [x[..., start:stop] for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1) if parts else x[..., :0]


def merge_runs(
    kept: torch.Tensor,
    made: torch.Tensor,
    pivots: tuple[tuple[int, int], ...],
    others: tuple[tuple[int, int], ...],
) -> torch.Tensor:
    """Columns [..., n] in their own order: those in `pivots` from `kept`, those in `others` from `made`."""
    runs = sorted([(start, stop, True) for start, stop in pivots] + [(start, stop, False) for start, stop in others])
    used = {True: 0, False: 0}
    parts = []
    for start, stop, is_pivot in runs:
        source, at = kept if is_pivot else made, used[is_pivot]
        parts.append(source[..., at : at + stop - start])
        used[is_pivot] = at + stop - start
    return torch.cat(parts, -1)
