"""LoRA on both factors of every MLP projection (Eq. 9): U + B_u A_u and V + B_v A_v, merged back into plain factors.

peft adapts nn.Linear. While training, each factored or interpolative projection is therefore replaced by linear layers
that share its memory; merging writes the sums into the same parameters and puts the projection back, so the form never
changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.factored_linear import FactoredLinear
from nxdi_svd_plugin.modeling.low_rank_linear import InterpolativeLinear, merge_runs, take_runs
from nxdi_svd_plugin.versions import import_extra

ADAPTER = "recovery"


Factored = FactoredLinear | InterpolativeLinear


class LinearParts(nn.Module):
    """The same function as a factored projection, with an nn.Linear on the memory of each of its matrices.

    u and v of a pair; u and c, or c and v, of the interpolative form, whose identity block is no matrix and stays.
    """

    u: nn.Linear
    c: nn.Linear
    v: nn.Linear

    def __init__(self, layer: Factored) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: not a submodule
        for name, matrix in layer.named_parameters():
            self.add_module(name, linear(matrix))

    @property
    def layer(self) -> Factored:
        """The layer that this one stands for."""
        return self._layer[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] to [..., out]."""
        layer, y = self.layer, x
        if isinstance(layer, FactoredLinear):
            y = self.v(self.u(x))
        elif layer.on_output:
            kept = self.u(x)
            y = merge_runs(kept, self.c(kept), layer.pivots, layer.others)
        else:
            y = self.v(take_runs(x, layer.pivots) + self.c(take_runs(x, layer.others)))
        return y


def linear(matrix: torch.Tensor) -> nn.Linear:
    """nn.Linear that computes x @ matrix on the matrix's own memory."""
    layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix.detach().t(), requires_grad=False)
    return layer


def factored_layers(model: nn.Module) -> dict[str, Factored]:
    """Name and layer of every projection that is not dense.

    Raises:
        CheckpointError: there is none.
    """
    found = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, (FactoredLinear, InterpolativeLinear))
    }
    if not found:
        raise CheckpointError("the model has no factored projection: compress it first with `nxdi-svd compress`")
    return found


def factor_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name and parameter of every factor."""
    return {
        f"{name}.{part}": p for name, layer in factored_layers(model).items() for part, p in layer.named_parameters()
    }


def attach(model: nn.Module, rank: int, alpha: float, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Put LoRA of `rank`, scaled by alpha / rank, on both factors of every projection; the rest is frozen.

    A is drawn from `generator` (uniform as peft does, bound 1/sqrt(fan in)), B is zero: the function is unchanged.

    Returns:
        The parameters to train, by name.
    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: the model has no factored projection.
    """
    peft = import_extra("peft", "recovery")
    layers = factored_layers(model)
    model.requires_grad_(False)
    for name, layer in layers.items():
        replace(model, name, LinearParts(layer))
    targets = [f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_parameters()]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return trained


def merge(model: nn.Module) -> None:
    """Add every B A to its factor in float32 and put the projections back."""
    for name, parts in list(parts_of(model)):
        for part, matrix in parts.layer.named_parameters():
            with torch.no_grad():
                matrix.add_(getattr(parts, part).get_delta_weight(ADAPTER).t())
        replace(model, name, parts.layer)


def parts_of(model: nn.Module) -> Iterator[tuple[str, LinearParts]]:
    """Name and layer of every layer that `attach` put in."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LinearParts))


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
