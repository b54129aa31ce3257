"""One factored projection as NxDI parameters: sharded, checked and laid out by NxDI's own checkpoint path.

Tensor parallelism is the paper's (Fig. 4): gate and up keep `u` [H, r] whole and split `v` [r, I] over I; down splits
`u` [I, r] over I and keeps `v` [r, H] whole. I is padded with zeros to a multiple of tp;
SiLU(0) * 0 = 0, so the padding is inert.

NxDI slices a parameter along one dimension. The preshard hook therefore builds the split factor of every rank, puts
each into the layout the kernel reads, and concatenates them along dim 0: the slice of a rank is then its layout.
"""

from __future__ import annotations

from typing import Any

import torch
from neuronx_distributed.parallel_layers.layers import BaseParallelLinear
from neuronx_distributed.parallel_layers.utils import set_tensor_model_parallel_attributes

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.kernels.packing import pack, unpack


def shard_width(intermediate: int, tp_degree: int) -> int:
    """Channels of the intermediate dimension on one rank, after padding to a multiple of `tp_degree`."""
    return -(-intermediate // tp_degree)


def split(factor: torch.Tensor, dim: int, parts: int) -> list[torch.Tensor]:
    """Split `factor` along `dim` into `parts` equal parts, padded with zeros at the end."""
    width = shard_width(factor.shape[dim], parts)
    padding = [0, 0, 0, 0]
    padding[2 * (1 - dim) + 1] = width * parts - factor.shape[dim]
    return list(torch.split(torch.nn.functional.pad(factor, padding), width, dim))


class Factors(BaseParallelLinear):  # type: ignore[misc]
    """`u` and `v` of one projection on this rank; y = x @ u @ v, partial over the ranks for the down projection.

    Args:
        fan_in, fan_out: the whole projection's dimensions.
        rank: the factorisation's rank.
        split_input: True for down (rows of `u` are split), False for gate and up (columns of `v`).
        tp_degree: number of ranks.
        dtype: of the parameters.
        kernel: "up_gate" or "down" for the layout that kernel reads (kernels/packing.py), None for plain matrices.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        rank: int,
        *,
        split_input: bool,
        tp_degree: int,
        dtype: torch.dtype,
        kernel: str | None = None,
    ) -> None:
        super().__init__()
        self.shapes = {"u": (fan_in, rank), "v": (rank, fan_out)}
        self.split_factor, self.split_dim = ("u", 0) if split_input else ("v", 1)
        self.tp_degree, self.kernel = tp_degree, kernel
        self.local_in = shard_width(fan_in, tp_degree) if split_input else fan_in
        local_out = fan_out if split_input else shard_width(fan_out, tp_degree)
        local = torch.empty(self.local_in, rank, device="meta"), torch.empty(rank, local_out, device="meta")
        for name, like in zip(("u", "v"), self._laid_out(*local), strict=True):
            # NaN, not random: a weight that never arrives must not look like an answer.
            parameter = torch.nn.Parameter(torch.full(like.shape, float("nan"), dtype=dtype), requires_grad=False)
            self.register_parameter(name, parameter)
            # After registration: on the meta device registering makes a new Parameter out of the old one's attributes.
            set_tensor_model_parallel_attributes(
                getattr(self, name), name == self.split_factor, 0, stride=1, num_partitions=tp_degree
            )

    def _laid_out(self, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One rank's factors in the layout of the parameters."""
        return (u, v) if self.kernel is None else pack(u, v, kernel=self.kernel)

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> bool:
        """Replace the checkpoint's `u` and `v` by what NxDI has to slice along dim 0; NxDI calls it once.

        Raises:
            NxdiError: a factor is missing or misshapen.
        """
        base = prefix.removesuffix("weight")
        for name, shape in self.shapes.items():
            found = model_state_dict.get(base + name)
            if found is None or tuple(found.shape) != shape:
                what = "is missing" if found is None else f"has shape {list(found.shape)}"
                raise NxdiError(f"{base}{name} {what}; expected {list(shape)}. Run `nxdi-svd verify` on the directory")
        u, v = model_state_dict[base + "u"], model_state_dict[base + "v"]
        if self.split_factor == "u":
            ranks = [self._laid_out(part, v) for part in split(u, 0, self.tp_degree)]
            u, v = torch.cat([part for part, _ in ranks]), ranks[0][1]
        else:
            ranks = [self._laid_out(u, part) for part in split(v, 1, self.tp_degree)]
            u, v = ranks[0][0], torch.cat([part for _, part in ranks])
        model_state_dict[base + "u"], model_state_dict[base + "v"] = u, v
        return True

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The parameters in the order of the kernels' arguments."""
        return self.u, self.v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] @ u @ v -> [..., out] with this rank's part of the factors, in PyTorch ops."""
        u, v = self.u, self.v
        if self.kernel is not None:
            u, v = unpack(u, v, self.local_in, kernel=self.kernel)
        y: torch.Tensor = x @ u @ v
        return y
