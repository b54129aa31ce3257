"""The loss gradient, one layer at a time: statistics of both sides of every MLP projection without the whole model.

The forward pass leaves the hidden states of every layer boundary on disk. The gradient of the loss starts at the head
and flows backwards: each layer is loaded alone, run again from its stored input, and differentiated; its input gradient
goes to disk for the layer below. Labels are drawn from the dense model's own predictions, so that the squared gradients
are the true Fisher information (the Hessian of KL(dense || compressed)), not the empirical one.

Every statistic is H x H or a vector: what the intermediate side contributes is projected by the weight first (see
factorize/spectrum.py). One sample's products are float32, their sum over samples float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi_svd_plugin.checkpoint.names import EMBEDDING, HEAD
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig, one_layer_config
from nxdi_svd_plugin.compress.calibrate.states import HiddenStates
from nxdi_svd_plugin.stored.layers import PROJECTIONS

NORM = "model.norm.weight"


class Gradients(HiddenStates):
    """The files `gradient-<layer>-<rank>.bin`: file i holds d loss / d (input of layer i), like the hidden states."""

    def path(self, layer: int) -> Path:
        """Where the gradient at the inputs of `layer` is."""
        return self._folder / f"gradient-{layer:05d}-{self._rank}.bin"


class Head:
    """Final norm and output matrix of the source, in float32: vocabulary x hidden x 4 bytes."""

    def __init__(self, reader: Reader, config: SourceConfig, device: torch.device) -> None:
        from transformers import AutoModel

        with torch.device("meta"):
            model: Any = AutoModel.from_config(one_layer_config(config))  # type: ignore[no-untyped-call]
        self.norm = model.norm
        self.norm.load_state_dict({"weight": reader.get(NORM).to(torch.float32)}, assign=True)
        self.norm.to(device).requires_grad_(False)
        name = HEAD if HEAD in reader.tensors else EMBEDDING
        self.weight = reader.get(name).to(device=device, dtype=torch.float32)

    def gradient(self, hidden: Tensor, seed: int) -> Tensor:
        """d loss / d hidden [length, hidden] with the loss summed over tokens and labels drawn with `seed`."""
        x = hidden.detach().requires_grad_(True)
        logits = self.norm(x) @ self.weight.T
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


class TwoSidedCollector:
    """Sums the statistics of one layer's MLP while samples run forward and backward through it.

    `sums` (see two_pass_cost.statistics_shapes for the keys) are sums over tokens, float64.
    """

    def __init__(self, model: Any, diagonal: bool, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        self._diagonal = diagonal
        mlp = model.layers[0].mlp
        self._weights = {name: getattr(mlp, name).weight for name in PROJECTIONS}
        for name in PROJECTIONS:
            getattr(mlp, name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def forward(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name == "gate_proj":
                self._add("inputs", inputs[0])
            if name == "down_proj":
                self._add("outputs", output)
                self._add_squares("down_squares", inputs[0])
            output.register_hook(lambda gradient: self._gradient(name, gradient))  # type: ignore[no-untyped-call]

        return forward

    def _gradient(self, name: str, gradient: Tensor) -> None:
        if name == "down_proj":
            (self._add_squares if self._diagonal else self._add)("down_gradients", gradient)
            return
        self._add_squares(name.replace("proj", "squares"), gradient)
        if not self._diagonal:
            self._add(name.replace("proj", "gradients"), gradient @ self._weights[name])

    def _add(self, key: str, x: Tensor) -> None:
        tokens = x.detach().reshape(-1, x.shape[-1])
        self.sums[key] += (tokens.T @ tokens).to(torch.float64)

    def _add_squares(self, key: str, x: Tensor) -> None:
        self.sums[key] += x.detach().reshape(-1, x.shape[-1]).square().sum(0).to(torch.float64)


def run_backward(model: Any, hidden: Tensor, gradient: Tensor) -> Tensor:
    """One sample through the layer and back: d loss / d hidden from d loss / d output, both [length, hidden]."""
    x = hidden.detach().requires_grad_(True)
    output: Tensor = model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0]
    return torch.autograd.grad(output, x, gradient)[0]
