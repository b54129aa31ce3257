"""Interpolative projections as NxDI parameters: every rank keeps its share of the pivots and of the other neurons.

The intermediate dimension I of a layer is first shared out so that every rank has the same number of pivots of gate, up
and down in the same places (`share_out`); a rank's part is then one run of I, and the forward pass is slices,
concatenations and products. Inside a rank its own pivots come first among all r of them, so

    gate, up:  z = x u (all r, replicated work as in the paper's layout), own neurons = [z[:own], z c_own]
    down:      t = h_others c_own (all r), t[:own] += h_pivots, y = t v, summed over the ranks by the MLP.

Where the pivots are whole tiles of 128 neurons the kernels do the same (fusion.py), and the parameters are in their
layout (kernels/packing.py). The order of the pivots differs from rank to rank, so `u` (gate, up) and `v` (down), though
whole on every rank, are handed to NxDI as one concatenation along dim 0 that it slices, like the split factors.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from neuronx_distributed.parallel_layers.layers import BaseParallelLinear
from neuronx_distributed.parallel_layers.utils import set_tensor_model_parallel_attributes

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.kernels.packing import pack, unpack
from nxdi_svd_plugin.kernels.tiling.limits import PARTITIONS
from nxdi_svd_plugin.modeling.low_rank_linear import merge_runs, take_runs
from nxdi_svd_plugin.stored.layers import Layers, Projection, Ranges, tensor_shapes
from nxdi_svd_plugin.stored.order import complement, indices, split_evenly

INTERPOLATIVE = "interpolative"
logger = logging.getLogger(__name__)


@functools.cache
def announce() -> None:
    """Log once that `mlp_impl="svd_fused"` has no kernel for pivots like these."""
    logger.warning(
        "mlp_impl='svd_fused' runs interpolative projections as PyTorch ops, not as NKI kernels: on each rank their "
        "pivots are not whole tiles of %d neurons, which the kernels need. Compress with a block of %d x tp_degree or "
        "with --form pair for the kernels",
        *(PARTITIONS, PARTITIONS),
    )


def has_interpolative(projections: dict[str, Projection]) -> bool:
    """Whether a layer has such a projection, so that its neurons are shared out over the ranks."""
    return any(projection.form == INTERPOLATIVE for projection in projections.values())


def shares(projections: dict[str, Projection], width: int, tp_degree: int) -> tuple[torch.Tensor, dict[str, Ranges]]:
    """The order of I in which rank k has the k-th part, and the pivots' places inside a rank.

    Raises:
        NxdiError: the pivots do not divide over the ranks.
    """
    runs = {name: p.pivots for name, p in projections.items() if p.form == INTERPOLATIVE}
    try:
        parts, local = split_evenly(runs, width, tp_degree)
    except RuntimeError as error:
        raise NxdiError(f"tp_degree={tp_degree}: {error}") from error
    return torch.cat(parts), local


def share_out(state_dict: dict[str, torch.Tensor], layers: Layers, width: int, tp_degree: int) -> None:
    """Put I into the order of `shares` in all projections of every interpolative layer, in place.

    Args:
        state_dict: checked, names without the leading `model.`.
    """
    for index, projections in layers.items():
        if not has_interpolative(projections):
            continue
        order, _ = shares(projections, width, tp_degree)
        for name, projection in projections.items():
            stem, down = f"layers.{index}.mlp.{name}.", name == "down_proj"
            if projection.form == INTERPOLATIVE:
                _reorder(state_dict, stem, projection, order, down)
            else:
                # `weight` is [out, in]: I is dim 1 of down's weight, dim 0 of gate's and up's; factors are [in, out]
                dense = projection.form == "dense"
                key, dim = stem + ("weight" if dense else "u" if down else "v"), int(down == dense)
                state_dict[key] = state_dict[key].index_select(dim, order)


def _reorder(
    state_dict: dict[str, torch.Tensor], stem: str, projection: Projection, order: torch.Tensor, down: bool
) -> None:
    is_pivot = torch.zeros(len(order), dtype=torch.bool)
    is_pivot[indices(projection.pivots)] = True
    number = torch.where(is_pivot, is_pivot.cumsum(0), (~is_pivot).cumsum(0)) - 1
    pivots, others = number[order[is_pivot[order]]], number[order[~is_pivot[order]]]
    if down:
        state_dict[stem + "c"] = state_dict[stem + "c"][others][:, pivots].contiguous()
        state_dict[stem + "v"] = state_dict[stem + "v"][pivots]
    else:
        state_dict[stem + "u"] = state_dict[stem + "u"][:, pivots].contiguous()
        state_dict[stem + "c"] = state_dict[stem + "c"][pivots][:, others].contiguous()


class InterpolativeFactors(BaseParallelLinear):  # type: ignore[misc]
    """One interpolative projection on this rank; y is partial over the ranks for the down projection.

    Args:
        fan_in, fan_out: the whole projection's dimensions.
        projection: its rank and stored pivots.
        pivots: where the pivots are among this rank's neurons, from `shares`.
        split_input: True for down.
        tp_degree: number of ranks.
        dtype: of the parameters.
        kernel: "up_gate" or "down" for the layout that kernel reads (kernels/packing.py), None for plain matrices.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        projection: Projection,
        pivots: Ranges,
        *,
        split_input: bool,
        tp_degree: int,
        dtype: torch.dtype,
        kernel: str | None = None,
    ) -> None:
        super().__init__()
        self.shapes = tensor_shapes(projection, fan_in, fan_out)
        self.split_input, self.tp_degree, self.pivots = split_input, tp_degree, pivots
        width = (fan_in if split_input else fan_out) // tp_degree
        self.others = complement(pivots, width)
        self.own, self.made = projection.rank // tp_degree, width - projection.rank // tp_degree
        self.kernel, self.rows = kernel, self.made if split_input else fan_in
        local = {name: list(shape) for name, shape in self.shapes.items()}
        local["c"][0 if split_input else 1] = self.made
        laid_out = self._laid_out({name: torch.empty(shape, device="meta") for name, shape in local.items()})
        for name in self.shapes:
            # NaN, not random: a weight that never arrives must not look like an answer.
            values = torch.full(laid_out[name].shape, float("nan"), dtype=dtype)
            parameter = torch.nn.Parameter(values, requires_grad=False)
            self.register_parameter(name, parameter)
            set_tensor_model_parallel_attributes(getattr(self, name), True, 0, stride=1, num_partitions=tp_degree)

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> bool:
        """Replace the checkpoint's tensors by what NxDI has to slice along dim 0; NxDI calls it once.

        Raises:
            NxdiError: a tensor is missing or misshapen.
        """
        base = prefix.removesuffix("weight")
        for name, shape in self.shapes.items():
            found = model_state_dict.get(base + name)
            if found is None or tuple(found.shape) != shape:
                what = "is missing" if found is None else f"has shape {list(found.shape)}"
                raise NxdiError(f"{base}{name} {what}; expected {list(shape)}. Run `nxdi-svd verify` on the directory")
        parts = [self._laid_out(self._part(model_state_dict, base, rank)) for rank in range(self.tp_degree)]
        for name in self.shapes:
            model_state_dict[base + name] = torch.cat([part[name] for part in parts], 0)
        return True

    def _laid_out(self, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One rank's tensors in the layout of the parameters."""
        if self.kernel is None:
            return part
        first, second = part.values()
        return dict(zip(part, pack(first, second, self.kernel, interpolative=True), strict=True))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The parameters in the order of the kernels' arguments: u and c of gate and up, c and v of down."""
        first, second = (getattr(self, name) for name in self.shapes)
        return first, second

    def _part(self, state_dict: dict[str, Any], base: str, rank: int) -> dict[str, torch.Tensor]:
        """One rank's tensors: its own pivots first, then the others'."""
        every = torch.arange(self.own * self.tp_degree)
        own = every[rank * self.own : (rank + 1) * self.own]
        first = torch.cat([own, every[: rank * self.own], every[(rank + 1) * self.own :]])
        made = slice(rank * self.made, (rank + 1) * self.made)
        if self.split_input:
            return {"c": state_dict[base + "c"][made][:, first], "v": state_dict[base + "v"][first]}
        return {"u": state_dict[base + "u"][:, first], "c": state_dict[base + "c"][first][:, made]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out] with this rank's part, in PyTorch ops."""
        first, second = self.factors()
        if self.kernel is not None:
            first, second = unpack(first, second, self.rows, kernel=self.kernel, interpolative=True)
        if self.split_input:
            t = take_runs(x, self.others) @ first
            t = torch.cat([t[..., : self.own] + take_runs(x, self.pivots), t[..., self.own :]], -1)
            y: torch.Tensor = t @ second
            return y
        z = x @ first
        return merge_runs(z[..., : self.own], z @ second, self.pivots, self.others)
