"""LoRA on both matrices of every low-rank projection (Eq. 9): U + B_u A_u and V + B_v A_v, merged back; and on down
where it stayed dense in a layer that dropped neurons, as it is no longer the source's.

peft adapts nn.Linear. While training, each low-rank projection is therefore replaced by linear layers that share its
memory; merging writes the sums into the same parameters and puts the projection back, so what is stored keeps its form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear, merge_runs, take_runs
from nxdi_svd_plugin.stored.projection import Side
from nxdi_svd_plugin.stored.runs import complement
from nxdi_svd_plugin.versions import import_extra

ADAPTER = "recovery"


class LinearParts(nn.Module):
    """The same function as a low-rank projection, with an nn.Linear on the memory of near and of each group of far.

    The linear layers stand in lists with the names of the parameters: u, v of a pair; u, c or c, v with pivots, whose
    identity block is no matrix and stays.
    """

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: not a submodule
        for name, _ in layer.named_parameters():
            self.add_module(name, nn.ModuleList(linear(piece) for piece in self.pieces(name)))

    @property
    def layer(self) -> LowRankLinear:
        """The layer that this one stands for."""
        return self._layer[0]

    def pieces(self, name: str) -> tuple[Tensor, ...]:
        """The parameter of this name [in, out] in pieces, views: far by groups of neurons, near whole."""
        layer, matrix = self.layer, self.layer.get_parameter(name).detach()
        near, _ = layer.stored.names(layer.reads)
        neurons = 1 - layer.reads.weight_axis  # [in, out] here, [out, in] in a dense weight
        return (matrix,) if name == near else matrix.chunk(layer.stored.groups, neurons)

    def linears(self, name: str) -> list[nn.Module]:
        """The linear layers on `pieces`."""
        return list(cast(nn.ModuleList, self.get_submodule(name)))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        layer = self.layer
        near, far = (self.linears(name) for name in layer.stored.names(layer.reads))
        pivots, part = layer.stored.pivots, layer.width // layer.stored.groups
        if layer.reads is Side.HIDDEN:
            slices = zip(near[0](x).chunk(len(far), -1), far, strict=True)
            return torch.cat([merge_runs(t, c(t), pivots, part) for t, c in slices], -1)
        gathered = []
        for h, c in zip(x.chunk(len(far), -1), far, strict=True):
            made = c(take_runs(h, complement(pivots, part)))
            gathered.append(take_runs(h, pivots) + made if pivots else made)
        y: Tensor = near[0](torch.cat(gathered, -1))
        return y


class DenseParts(nn.Module):
    """The same for a dense projection: one nn.Linear, `weight`, on its memory."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._layer = [layer]
        self.weight = nn.ModuleList([linear(*self.pieces("weight"))])

    @property
    def layer(self) -> nn.Linear:
        """The layer that this one stands for."""
        return self._layer[0]

    def pieces(self, name: str) -> tuple[Tensor, ...]:
        """The weight as [in, out], a view."""
        return (self.layer.get_parameter(name).detach().t(),)

    def linears(self, name: str) -> list[nn.Module]:
        """The linear layer on it."""
        return list(cast(nn.ModuleList, self.get_submodule(name)))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        y: Tensor = self.weight[0](x)
        return y


def linear(matrix: Tensor) -> nn.Linear:
    """nn.Linear that computes x @ matrix on the matrix's own memory."""
    layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix.t(), requires_grad=False)
    return layer


def compressed_layers(model: Any) -> dict[str, LowRankLinear | nn.Linear]:
    """Name and layer of every projection that is not dense, and of every down that was fitted again.

    Raises:
        CheckpointError: there is none.
    """
    found: dict[str, LowRankLinear | nn.Linear] = {}
    for name, layer in model.named_modules():
        down = name.endswith(".mlp.down_proj") and isinstance(layer, nn.Linear)
        if isinstance(layer, LowRankLinear) or (down and layer.in_features < model.config.intermediate_size):
            found[name] = layer
    if not found:
        raise CheckpointError(
            "the model has no low-rank projection and dropped no neurons: compress it first with `nxdi-svd compress`"
        )
    return found


def factor_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Name and parameter of every near and far, and of every down that was fitted again."""
    layers = compressed_layers(model).items()
    return {f"{name}.{part}": p for name, layer in layers for part, p in layer.named_parameters()}


def attach(model: Any, rank: int, alpha: float, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Put LoRA of `rank`, scaled by alpha / rank, on near and far of every projection; the rest is frozen.

    A is drawn from `generator` (uniform as peft does, bound 1/sqrt(fan in)), B is zero: the function is unchanged.

    Returns:
        The parameters to train, by name.
    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: the model has nothing to train.
    """
    peft = import_extra("peft", "recovery")
    model.requires_grad_(False)
    for name, layer in compressed_layers(model).items():
        replace(model, name, LinearParts(layer) if isinstance(layer, LowRankLinear) else DenseParts(layer))
    targets = [
        f"{name}.{part}" for name, parts in parts_of(model) for part, m in parts.named_modules() if type(m) is nn.Linear
    ]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return trained


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every B A to its matrix in float32 and put the projections back."""
    for name, parts in list(parts_of(model)):
        for part, _ in parts.layer.named_parameters():
            for piece, adapted in zip(parts.pieces(part), parts.linears(part), strict=True):
                piece.add_(adapted.get_delta_weight(ADAPTER).t())  # type: ignore[operator]
        replace(model, name, parts.layer)


def parts_of(model: nn.Module) -> Iterator[tuple[str, LinearParts | DenseParts]]:
    """Name and layer of every layer that `attach` put in."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, (LinearParts, DenseParts)))


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
