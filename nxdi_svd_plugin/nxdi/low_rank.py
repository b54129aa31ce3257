"""One low-rank projection as NxDI parameters: sharded, checked and laid out by NxDI's own checkpoint path.

Tensor parallelism is the paper's (Fig. 4): near [H, r] is whole on every core, far [r, w - pivots] is split over the
intermediate neurons, padded with zeros to a multiple of the cores; SiLU(0) * 0 = 0, so the padding is inert. A core has
its share of the pivots in the same places as every other (state_dict.share_out), and its own pivots come first among
all r, so that the forward pass is slices, concatenations and products:

    gate, up:  z = x near (all r, the same work on every core), neurons = z[:own] at the pivots, z far elsewhere
    down:      t = h_others far^T (all r), t[:own] += h_pivots, y = t near^T, summed over the cores by the MLP

A pair has no pivots, so own = 0. NxDI slices a parameter along one dimension. The preshard hook therefore builds every
core's tensors, puts them into the layout that the kernel reads (kernels/packing.py), and concatenates along dim 0 those
that differ from core to core: the slice of a core is then its layout.
"""

from __future__ import annotations

from typing import Any

import torch
from neuronx_distributed.parallel_layers.layers import BaseParallelLinear
from neuronx_distributed.parallel_layers.utils import set_tensor_model_parallel_attributes

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.kernels.packing import pack, unpack
from nxdi_svd_plugin.modeling.low_rank_linear import merge_runs, take_runs
from nxdi_svd_plugin.stored.projection import LowRank, Side
from nxdi_svd_plugin.stored.runs import Runs, complement, length

KERNEL = {Side.HIDDEN: "up_gate", Side.INTERMEDIATE: "down"}
"""The kernel of a projection that reads this side."""
Tensors = dict[str, torch.Tensor]


class LowRankFactors(BaseParallelLinear):  # type: ignore[misc]
    """One low-rank projection on this core, its parameters named as on disk; down's output is partial over the cores.

    Args:
        stored: rank and stored pivots, of one group.
        reads: the side of the input.
        hidden, width: H and the layer's intermediate neurons on all cores together.
        pivots: where the pivots are among this core's neurons (stored.cells.core_runs); none for a pair.
        tp_degree: number of cores.
        dtype: of the parameters.
        kernel: whether the parameters are in the layout of the fused kernel, instead of plain matrices.
    """

    def __init__(
        self,
        stored: LowRank,
        reads: Side,
        hidden: int,
        width: int,
        pivots: Runs,
        *,
        tp_degree: int,
        dtype: torch.dtype,
        kernel: bool = False,
    ) -> None:
        super().__init__()
        self.stored, self.reads, self.pivots, self.tp_degree = stored, reads, pivots, tp_degree
        self.kernel = KERNEL[reads] if kernel else None
        self.shapes = stored.tensors(reads, hidden, width)
        self.own, self.share = length(pivots), -(-width // tp_degree)
        near_name, far_name = stored.names(reads)
        self.split = {near_name: bool(pivots), far_name: True}
        far = torch.empty(stored.rank, self.share - self.own, device="meta")
        part = stored.to_disk(reads, torch.empty(hidden, stored.rank, device="meta"), far)
        self.rows = next(iter(part.values())).shape[0]  # `unpack` needs it
        for name, like in self._laid_out(part).items():
            # NaN, not random: a weight that never arrives must not look like an answer.
            parameter = torch.nn.Parameter(torch.full(like.shape, float("nan"), dtype=dtype), requires_grad=False)
            self.register_parameter(name, parameter)
            # After registration: on the meta device registering makes a new Parameter out of the old one's attributes.
            set_tensor_model_parallel_attributes(
                getattr(self, name), self.split[name], 0, stride=1, num_partitions=tp_degree
            )

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> bool:
        """Replace the checkpoint's tensors by what NxDI has to slice along dim 0; NxDI calls it once.

        Raises:
            NxdiError: a tensor is missing or misshapen.
        """
        base = prefix.removesuffix("weight")
        whole = {name: self._found(model_state_dict, base, name) for name in self.shapes}
        near, far = self.stored.from_disk(self.reads, whole)
        pieces = enumerate(split_columns(far, self.tp_degree))
        parts = [self._laid_out(self._part(near, piece, core)) for core, piece in pieces]
        for name, split in self.split.items():
            every = [part[name] for part in parts]
            model_state_dict[base + name] = torch.cat(every) if split else every[0].contiguous()
        return True

    def _found(self, state_dict: dict[str, Any], base: str, name: str) -> torch.Tensor:
        found, shape = state_dict.get(base + name), self.shapes[name]
        if found is None or tuple(found.shape) != shape:
            what = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise NxdiError(f"{base}{name} {what}; expected {list(shape)}. Run `nxdi-svd verify` on the directory")
        tensor: torch.Tensor = found
        return tensor

    def _part(self, near: torch.Tensor, far: torch.Tensor, core: int) -> Tensors:
        """One core's tensors out of the whole near and its columns of far: its own pivots first, then the others'."""
        if self.own:
            every, start = torch.arange(self.stored.rank), core * self.own
            first = torch.cat([every[start : start + self.own], every[:start], every[start + self.own :]])
            near, far = near[:, first], far[first]
        return self.stored.to_disk(self.reads, near, far)

    def _laid_out(self, part: Tensors) -> Tensors:
        """One core's tensors in the layout of the parameters."""
        if self.kernel is None:
            return part
        first, second = part.values()
        return dict(zip(part, pack(first, second, self.kernel, interpolative=bool(self.pivots)), strict=True))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The parameters in the order in which they multiply, which is that of the kernels' arguments."""
        first, second = (getattr(self, name) for name in self.shapes)
        return first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out] with this core's part, in PyTorch ops."""
        first, second = self.factors()
        if self.kernel is not None:
            first, second = unpack(first, second, self.rows, kernel=self.kernel, interpolative=bool(self.pivots))
        if self.reads is Side.HIDDEN:
            z = x @ first
            return merge_runs(z[..., : self.own], z @ second, self.pivots, self.share)
        t = take_runs(x, complement(self.pivots, self.share)) @ first
        if self.own:
            t = t + torch.nn.functional.pad(take_runs(x, self.pivots), (0, self.stored.rank - self.own))
        y: torch.Tensor = t @ second
        return y


def split_columns(far: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """`far` in so many parts of equally many columns, padded with zeros at the end."""
    columns = -(-far.shape[1] // parts)
    padded = torch.nn.functional.pad(far, (0, columns * parts - far.shape[1]))
    return [padded[:, columns * k : columns * (k + 1)] for k in range(parts)]
