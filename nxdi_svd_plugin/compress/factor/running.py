"""The MLP of a layer as its file will hold it, run in float32, with what is inside it: what a refit is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.compress.factor.refit import parts
from nxdi_svd_plugin.compress.factor.rounding import bf16_error, probes, stored_layer
from nxdi_svd_plugin.modeling.low_rank_linear import gather, spread
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS, LowRank, Side

DOWN = "down_proj"


class RunningMlp:
    """Of numbers rounded to what is stored.

    Args:
        weights: projection name to the source's torch weight [out, in]; asked for what the layer has no tensors of.
        dtypes: in which every projection is stored.
    """

    def __init__(self, made: LayerFactors, weights: Callable[[str], Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
        self._made, self._weights, self._dtypes = made, weights, dtypes
        self._parts = {name: self._rounded(name) for name in PROJECTIONS}

    def _rounded(self, name: str) -> tuple[Tensor, Tensor | None]:
        made = self._made
        if isinstance(made.mlp[name], LowRank) or f"{name}.weight" in made.tensors:
            near, far = parts(made, name)
        else:
            near, far = READS[name].hidden_first(self._weights(name)), None
        dtype = self._dtypes[name]
        return near.to(dtype).to(torch.float32), None if far is None else far.to(dtype).to(torch.float32)

    def neurons(self, x: Tensor) -> Tensor:
        """z [n, w], what down reads, of x [n, H]."""
        return functional.silu(self._out("gate_proj", x)) * self._out("up_proj", x)

    def _out(self, name: str, x: Tensor) -> Tensor:
        (near, far), p = self._parts[name], self._made.mlp[name]
        if far is None or not isinstance(p, LowRank):
            return x @ near
        return spread(x @ near, far, p, self._made.mlp.width)

    def gathered(self, z: Tensor) -> Tensor:
        """What near of down reads: z itself where down is dense."""
        far, p = self._parts[DOWN][1], self._made.mlp[DOWN]
        return gather(z, far, p, self._made.mlp.width) if far is not None and isinstance(p, LowRank) else z

    def down(self, gathered: Tensor) -> Tensor:
        """The output [n, H]."""
        y: Tensor = gathered @ self._parts[DOWN][0].T
        return y


def running_errors(made: LayerFactors, mlp: RunningMlp, inputs: Tensor) -> dict[str, float]:
    """What bfloat16 adds to the outputs of the low-rank projections, as in rounding.py, on what they read behind each
    other.

    Args:
        inputs: E[x x^T] [H, H] of what gate and up read.
    """
    x = probes(inputs).to(torch.float32)
    read = {Side.HIDDEN: x, Side.INTERMEDIATE: mlp.neurons(x)}
    low = {name: p for name, p in made.mlp.items() if isinstance(p, LowRank)}
    return {
        name: bf16_error(stored_layer(made, name, p, x.shape[1]).to(torch.float32), read[READS[name]])
        for name, p in low.items()
    }
