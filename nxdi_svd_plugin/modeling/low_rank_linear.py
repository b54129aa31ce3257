"""The linear layer of every low-rank form: slices, concatenations and products.

stored/projection.py says what near, far, pivots and groups are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import READS, Dense, LowRank, Side
from nxdi_svd_plugin.stored.runs import Runs, complement


class LowRankLinear(nn.Module):
    """y = x @ W without bias, W = near far [in, out] or its transpose.

    The parameters are the tensors on disk, under their names, in torch's default dtype; until they are loaded they are
    drawn like nn.Linear's weight, uniform within 1/sqrt(rows).

    Args:
        stored: rank, pivots and groups.
        reads: the side of the input.
        hidden, width: H and the layer's intermediate neurons.
    """

    def __init__(self, stored: LowRank, reads: Side, hidden: int, width: int) -> None:
        super().__init__()
        self.stored, self.reads, self.width = stored, reads, width
        self.in_features, self.out_features = reads.dims(hidden, width)
        for name, shape in stored.tensors(reads, hidden, width).items():
            bound = 1 / math.sqrt(max(shape[0], 1))
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            nn.init.uniform_(self.get_parameter(name), -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        tensors = {name: getattr(self, name) for name in self.stored.names(self.reads)}
        near, far = self.stored.from_disk(self.reads, tensors)
        if self.reads is Side.HIDDEN:
            return spread(x @ near, far, self.stored, self.width)
        y: Tensor = gather(x, far, self.stored, self.width) @ near.T
        return y

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.stored.rank}, "
            f"form={self.stored.form}, groups={self.stored.groups}"
        )


def spread(t: Tensor, far: Tensor, stored: LowRank, width: int) -> Tensor:
    """Rank space [..., r] to the intermediate neurons [..., w]: pivots are t itself, the others t @ far."""
    if stored.groups == 1:
        return merge_runs(t, t @ far, stored.pivots, width)
    parts = zip(t.chunk(stored.groups, -1), far.chunk(stored.groups, -1), strict=True)
    return torch.cat([merge_runs(a, a @ b, stored.pivots, width // stored.groups) for a, b in parts], -1)


def gather(h: Tensor, far: Tensor, stored: LowRank, width: int) -> Tensor:
    """The intermediate neurons [..., w] to rank space [..., r]: the transpose of `spread`."""
    if stored.groups == 1:
        return _gathered(h, far, stored.pivots, width)
    parts = zip(h.chunk(stored.groups, -1), far.chunk(stored.groups, -1), strict=True)
    return torch.cat([_gathered(a, b, stored.pivots, width // stored.groups) for a, b in parts], -1)


def _gathered(h: Tensor, far: Tensor, pivots: Runs, width: int) -> Tensor:
    if not pivots:
        return h @ far.T
    return take_runs(h, pivots) + take_runs(h, complement(pivots, width)) @ far.T


def take_runs(h: Tensor, runs: Runs) -> Tensor:
    """The columns of h [..., n] in the runs; no piece is empty, so every one is a real slice on a device."""
    pieces = [h[..., start:stop] for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1) if pieces else h[..., :0]


def merge_runs(kept: Tensor, made: Tensor, pivots: Runs, width: int) -> Tensor:
    """Columns [..., width] in their own order: those in the runs from `kept`, the others from `made`."""
    if not pivots:
        return made
    runs = sorted([(*run, True) for run in pivots] + [(*run, False) for run in complement(pivots, width)])
    used, pieces = {True: 0, False: 0}, []
    for start, stop, is_pivot in runs:
        source, at = (kept if is_pivot else made), used[is_pivot]
        used[is_pivot] = at + stop - start
        pieces.append(source[..., at : used[is_pivot]])
    return torch.cat(pieces, -1)


def install_low_rank(mlps: Mapping[int, nn.Module], layers: Mapping[int, Mlp], hidden: int) -> None:
    """Replace the projections of each MLP by what `layers` says it stores.

    Args:
        mlps: layer number to a module with gate_proj, up_proj and down_proj, all nn.Linear of the whole width.
    """
    for i, mlp in mlps.items():
        for name, projection in layers[i].items():
            reads, width = READS[name], layers[i].width
            if not isinstance(projection, Dense):
                setattr(mlp, name, LowRankLinear(projection, reads, hidden, width))
            elif getattr(mlp, name).weight.shape[reads.weight_axis] != width:
                setattr(mlp, name, nn.Linear(*reads.dims(hidden, width), bias=False))
