"""One low-rank projection as NxDI parameters: sharded, checked and laid out by NxDI's own checkpoint path.

stored/cores.py says which groups a core has and which of them it shares. Of a group, a core has near whole and its
share of far; where cores share a group with pivots, each has as many of them in the same places as every other
(state_dict.share_out), and its own come first among the group's r, so that the forward pass is slices, concatenations
and products, group by group:

    gate, up:  z = x near (all r), neurons = z[:own] at the pivots, z far elsewhere
    down:      t = h_others far^T (all r), t[:own] += h_pivots, y = t near^T, summed over groups, and cores by the MLP

A pair has no pivots, so own = 0. Each group on the core has parameters of its own, because a kernel must get them as
they are: a slice of a larger one would be copied at every call. NxDI slices a parameter along one dimension. The
preshard hook therefore builds every core's tensors, puts them into the layout that the kernel reads
(kernels/packing.py), and concatenates along dim 0 those that differ from core to core: the slice of a core is then its
layout.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from neuronx_distributed.parallel_layers.layers import BaseParallelLinear
from neuronx_distributed.parallel_layers.utils import set_tensor_model_parallel_attributes

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.kernels.packing import interleaved, pack, unpack
from nxdi_svd_plugin.modeling.low_rank_linear import merge_runs, take_runs
from nxdi_svd_plugin.stored.cells import core_runs, pivot_runs
from nxdi_svd_plugin.stored.cores import share_of, sharing
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import READS, LowRank, Side
from nxdi_svd_plugin.stored.runs import complement, length

KERNEL = {Side.HIDDEN: "up_gate", Side.INTERMEDIATE: "down"}
"""The kernel of a projection that reads this side."""
Tensors = dict[str, torch.Tensor]


def parameter_names(mlp: Mlp, name: str, tp: int) -> list[list[str]]:
    """The parameters of a low-rank projection for each group on a core, in the order in which they multiply.

    They are named as on disk, and numbered where a core has several groups.
    """
    names, groups = list(mlp[name].tensors(READS[name], 1, mlp.width)), sharing(mlp.groups, tp).groups
    return [[f"{tensor}{number}" for tensor in names] for number in range(groups)] if groups > 1 else [names]


def in_kernel_order(mlp: Mlp, tp: int) -> bool:
    """Whether the kernels have a group's neurons in kernel order (packing.to_kernel_order): where any projection of the
    MLP has pivots. A pair beside it is packed for that order too, so that the kernels agree."""
    return any(pivot_runs(mlp)) and interleaved(share_of(mlp, tp))


class LowRankFactors(BaseParallelLinear):  # type: ignore[misc]
    """One low-rank projection on this core, see `parameter_names`; down's output is partial over the cores.

    Args:
        mlp: what the layer stores.
        name: of the projection.
        hidden: H.
        tp_degree: number of cores.
        dtype: of the parameters.
        kernel: whether the parameters are in the layout of the fused kernel, instead of plain matrices.
    Raises:
        SvdError: the groups, or the pivots of a group, do not go evenly on the cores.
    """

    def __init__(
        self, mlp: Mlp, name: str, hidden: int, *, tp_degree: int, dtype: torch.dtype, kernel: bool = False
    ) -> None:
        super().__init__()
        stored = cast("LowRank", mlp[name])
        self.stored, self.reads, self.tp_degree = stored, READS[name], tp_degree
        self.sharing = sharing(stored.groups, tp_degree)
        self.kernel = KERNEL[self.reads] if kernel else None
        self.in_kernel_order = in_kernel_order(mlp, tp_degree)
        self.shapes = stored.tensors(self.reads, hidden, mlp.width)
        self.pivots = core_runs(mlp, self.sharing.cores)[name]
        self.own, self.share, self.rank = length(self.pivots), share_of(mlp, tp_degree), stored.rank // stored.groups
        self.names = parameter_names(mlp, name, tp_degree)
        far = torch.empty(self.rank, self.share - self.own, device="meta")
        part = stored.to_disk(self.reads, torch.empty(hidden, self.rank, device="meta"), far)
        self.rows = next(iter(part.values())).shape[0]  # `unpack` needs it
        shapes = [like.shape for like in self._laid_out(part).values()]
        for names in self.names:
            for parameter, shape, tensor in zip(names, shapes, part, strict=True):
                self._register(parameter, shape, dtype, self._differs(tensor))

    def _differs(self, tensor: str) -> bool:
        """Whether this tensor of the disk differs from core to core: all but the one near of a pair."""
        near, _ = self.stored.names(self.reads)
        return tensor != near or bool(self.pivots) or self.stored.groups > 1

    def _register(self, name: str, shape: torch.Size, dtype: torch.dtype, split: bool) -> None:
        # NaN, not random: a weight that never arrives must not look like an answer.
        parameter = torch.nn.Parameter(torch.full(shape, float("nan"), dtype=dtype), requires_grad=False)
        self.register_parameter(name, parameter)
        # After registration: on the meta device registering makes a new Parameter out of the old one's attributes.
        set_tensor_model_parallel_attributes(getattr(self, name), split, 0, stride=1, num_partitions=self.tp_degree)

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> bool:
        """Replace the checkpoint's tensors by what NxDI has to slice along dim 0; NxDI calls it once.

        Raises:
            NxdiError: a tensor is missing or misshapen.
        """
        base = prefix.removesuffix("weight")
        whole = {name: self._found(model_state_dict, base, name) for name in self.shapes}
        nears, fars = (both.chunk(self.stored.groups, 1) for both in self.stored.from_disk(self.reads, whole))
        for name in self.shapes:
            del model_state_dict[base + name]
        for number, names in enumerate(self.names):
            groups = [self.sharing.held(core)[number] for core in range(self.tp_degree)]
            parts = [self._laid_out(self._part(nears[k], fars[k], core)) for core, k in enumerate(groups)]
            for name, tensor in zip(names, self.shapes, strict=True):
                every = [part[tensor] for part in parts]
                model_state_dict[base + name] = torch.cat(every) if self._differs(tensor) else every[0].contiguous()
        return True

    def _found(self, state_dict: dict[str, Any], base: str, name: str) -> torch.Tensor:
        found, shape = state_dict.get(base + name), self.shapes[name]
        if found is None or tuple(found.shape) != shape:
            what = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise NxdiError(f"{base}{name} {what}; expected {list(shape)}. Run `nxdi-svd verify` on the directory")
        tensor: torch.Tensor = found
        return tensor

    def _part(self, near: torch.Tensor, far: torch.Tensor, core: int) -> Tensors:
        """One core's tensors of a group: its columns of far, and its own pivots first among the rank."""
        seat = self.sharing.seat(core)
        far = split_columns(far, self.sharing.cores)[seat]
        if 0 < self.own < self.rank:
            every, start = torch.arange(self.rank), seat * self.own
            first = torch.cat([every[start : start + self.own], every[:start], every[start + self.own :]])
            near, far = near[:, first], far[first]
        return self.stored.to_disk(self.reads, near, far)

    def _laid_out(self, part: Tensors) -> Tensors:
        """One core's tensors of a group in the layout of the parameters."""
        if self.kernel is None:
            return part
        first, second = part.values()
        return dict(zip(part, pack(first, second, self.kernel, interpolative=self.in_kernel_order), strict=True))

    def factors(self, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The parameters of a group on this core in the order in which they multiply, as the kernels take them."""
        first, second = (getattr(self, name) for name in self.names[group])
        return first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out] with this core's part, in PyTorch ops."""
        groups = range(self.sharing.groups)
        if self.reads is Side.HIDDEN:
            return joined([self._spread(x, group) for group in groups])
        parts = zip(x.chunk(len(groups), -1), groups, strict=True)
        return functools.reduce(torch.add, [self._gathered(part, group) for part, group in parts])

    def _plain(self, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.factors(group)
        if self.kernel is None:
            return first, second
        plain: tuple[torch.Tensor, torch.Tensor] = unpack(
            first, second, self.rows, kernel=self.kernel, interpolative=self.in_kernel_order
        )
        return plain

    def _spread(self, x: torch.Tensor, group: int) -> torch.Tensor:
        """[..., H] to the neurons of a group [..., share]."""
        near, far = self._plain(group)
        z = x @ near
        return merge_runs(z[..., : self.own], z @ far, self.pivots, self.share)

    def _gathered(self, h: torch.Tensor, group: int) -> torch.Tensor:
        """The neurons of a group [..., share] to [..., H]."""
        far_t, near_t = self._plain(group)
        t = take_runs(h, complement(self.pivots, self.share)) @ far_t
        if self.own:
            t = t + torch.nn.functional.pad(take_runs(h, self.pivots), (0, self.rank - self.own))
        y: torch.Tensor = t @ near_t
        return y


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The groups' neurons side by side, in the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def split_columns(far: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """`far` in so many parts of equally many columns, padded with zeros at the end."""
    columns = -(-far.shape[1] // parts)
    padded = torch.nn.functional.pad(far, (0, columns * parts - far.shape[1]))
    return [padded[:, columns * k : columns * (k + 1)] for k in range(parts)]
