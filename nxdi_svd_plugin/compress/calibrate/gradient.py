"""The loss gradient, one layer at a time: statistics of both sides of every MLP projection without the whole model.

The forward pass leaves the hidden states of every layer boundary on disk. The gradient of the loss starts at the head
and flows backwards: each layer is loaded alone, run again from its stored input, and differentiated; its input gradient
goes to disk for the layer below. Labels are drawn from the dense model's own predictions, so that the squared gradients
are the true Fisher information (the Hessian of KL(dense || compressed)), not the empirical one.

No statistic is I x I but the one that dropping neurons needs (inner.py): what the intermediate side contributes is
projected by the weight first, unless it comes in groups that are smaller than H (see factorize/spectrum.py). One
sample's products are float32, their sum over samples float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nxdi_svd_plugin.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig, one_layer_config
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.inner import add_inner
from nxdi_svd_plugin.compress.calibrate.layer import decode
from nxdi_svd_plugin.compress.calibrate.products import operand_dtype, product
from nxdi_svd_plugin.compress.calibrate.sizes import SLICE
from nxdi_svd_plugin.compress.calibrate.statistics import FAR, SQUARES, Statistics, parts
from nxdi_svd_plugin.stored.projection import PROJECTIONS


class Head:
    """Final norm and output matrix of the source, in float32: vocabulary x hidden x 4 bytes."""

    def __init__(self, reader: Reader, config: SourceConfig, device: torch.device) -> None:
        from transformers import AutoModel

        with torch.device("meta"):
            model: Any = AutoModel.from_config(one_layer_config(config))  # type: ignore[no-untyped-call]
        self.norm = model.norm
        self.norm.load_state_dict({"weight": reader.get(FINAL_NORM).to(torch.float32)}, assign=True)
        self.norm.to(device).requires_grad_(False)
        name = HEAD if HEAD in reader.tensors else EMBEDDING
        self.weight = reader.get(name).to(device=device, dtype=torch.float32)
        self._operand = self.weight.to(operand_dtype(device))
        shape = (SLICE, len(self.weight))
        self._odds, self._sums = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))

    def gradient(self, hidden: Tensor, seed: int) -> Tensor:
        """d loss / d hidden [length, hidden] with the loss summed over tokens and labels drawn with `seed`."""
        x = hidden.detach().requires_grad_(True)
        normed = self.norm(x)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(hidden), 1, generator=generator).to(hidden.device)
        slices = [slice(start, start + SLICE) for start in range(0, len(hidden), SLICE)]
        seen = normed.detach()
        return torch.autograd.grad(normed, x, torch.cat([self.pull(seen[at], uniform[at]) for at in slices]))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, vocabulary] of the last layer's output [tokens, hidden]."""
        found: Tensor = self.norm(hidden) @ self.weight.T
        return found

    def pull(self, normed: Tensor, uniform: Tensor) -> Tensor:
        """(softmax(logits) - onehot(label)) @ weight for some tokens; a label is where the cumulative sum of its
        token's softmax passes `uniform` [tokens, 1]."""
        odds, sums = self._odds[: len(normed)], self._sums[: len(normed)]
        torch.mm(normed, self.weight.T, out=odds)
        odds.sub_(odds.amax(-1, keepdim=True)).exp_()
        torch.cumsum(odds, -1, out=sums)
        total = sums[:, -1:].clone()
        labels = torch.searchsorted(sums, uniform * total, right=True).clamp_max(len(self.weight) - 1)
        return product(odds, self._operand) / total - self.weight[labels[:, 0]]


class Silent(torch.nn.Module):
    """Stands in an MLP's place: keeps what the MLP would read and adds nothing to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Zero, for every token."""
        self.read = x
        return x.new_zeros(())


class LayerBackward:
    """One decoder layer, run again and differentiated: sums the statistics of its MLP, sends the gradient down.

    Norms and attention are transformers' own under autograd; the MLP is differentiated here, because its statistics
    are its backward products: with a = silu(gate), z = a up and dz = dy W_down,

        d_up = dz a,   d_gate = dz up silu'(gate),   dx = d_gate W_gate + d_up W_up.
    """

    def __init__(self, model: Any, groups: Groups, statistics: Statistics, inner: Tensor | None = None) -> None:
        self.groups, self.statistics, self.inner = groups, statistics, inner
        self._model, self._silent = model, Silent()
        mlp = model.layers[0].mlp
        self._gate, self._up, self._down = (getattr(mlp, name).weight for name in PROJECTIONS)
        model.layers[0].mlp = self._silent

    def gradient(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """d loss / d hidden from d loss / d output of one sample, both [length, hidden]."""
        x = hidden.detach().requires_grad_(True)
        middle = decode(self._model, x)
        read, self._silent.read = self._silent.read, torch.empty(0)
        return torch.autograd.grad((middle, read), x, (gradient, self._mlp(read.detach()[0], gradient)[None]))[0]

    @torch.no_grad()
    def _mlp(self, x: Tensor, gradient: Tensor) -> Tensor:
        """d loss / dx of the MLP; `gradient` is that at its output."""
        gate, up = product(x, self._gate.T), product(x, self._up.T)
        share = gate.sigmoid()
        act = gate.mul_(share)
        inner = act * up
        self.statistics.add("inputs", x)
        self.statistics.add("down_gradients", gradient)
        self._add_far("down_proj", inner, self._down.T)
        if self.inner is not None:
            add_inner(self.inner, inner)
        inner_gradient = product(gradient, self._down)
        slope = share.add_(act - act * share)
        gate_gradient = up.mul_(inner_gradient).mul_(slope)
        up_gradient = act.mul_(inner_gradient)
        shares = [
            *self._add_far("gate_proj", gate_gradient, self._gate),
            *self._add_far("up_proj", up_gradient, self._up),
        ]
        if self.groups.narrow:
            shares = [product(gate_gradient, self._gate), product(up_gradient, self._up)]
        below = shares[0]
        for share in shares[1:]:
            below.add_(share)
        return below

    def _add_far(self, name: str, far: Tensor, weight: Tensor) -> list[Tensor]:
        """Add what the neurons contribute, far [length, I] through weight [I, H]; what was added, group by group."""
        if not self.groups.narrow:
            self.statistics.add_squares(SQUARES[name], far)
        found = list(parts(self.groups, far, weight))
        for group, part in enumerate(found):
            self.statistics.add(FAR[name], part, group)
        return found
