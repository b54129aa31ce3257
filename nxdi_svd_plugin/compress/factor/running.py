"""The MLP of a layer as its file will hold it, run on float32 inputs, with what is inside it, for a refit.

Inside `quick_products` weights are kept, and products made, as the calibration's are; oneDNN keeps code for every shape
of them, 0.2 MB apiece and at most 1,024, so with small blocks memory grows by that much over the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nxdi_svd_plugin.compress.calibrate.products import operand_dtype, product
from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.compress.factor.refit import DOWN, parts
from nxdi_svd_plugin.modeling.low_rank_linear import gather, spread
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS, LowRank


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
        stored, operands = self._dtypes[name], operand_dtype(near.device)
        return near.to(stored).to(operands), None if far is None else far.to(stored).to(operands)

    def neurons(self, x: Tensor) -> Tensor:
        """z [n, w], what down reads, of x [n, H]."""
        return functional.silu(self._out("gate_proj", x)) * self._out("up_proj", x)

    def _out(self, name: str, x: Tensor) -> Tensor:
        (near, far), p = self._parts[name], self._made.mlp[name]
        if far is None or not isinstance(p, LowRank):
            return product(x, near)
        return spread(x.to(near.dtype) @ near, far, p, self._made.mlp.width).to(x.dtype)

    def gathered(self, z: Tensor) -> Tensor:
        """What near of down reads: z itself where down is dense."""
        far, p = self._parts[DOWN][1], self._made.mlp[DOWN]
        if far is None or not isinstance(p, LowRank):
            return z
        return gather(z.to(far.dtype), far, p, self._made.mlp.width).to(z.dtype)

    def down(self, gathered: Tensor) -> Tensor:
        """The output [n, H]."""
        return product(gathered, self._parts[DOWN][0].T)

    @property
    def read_by_near(self) -> int:
        """How many numbers near of down reads of a token."""
        return self._parts[DOWN][0].shape[1]
