"""Running the calibration tokens through one decoder layer at a time, over hidden states stored on disk.

The layer is a transformers LlamaModel or Qwen3Model with one layer and no final norm, so that masks and rotary
embeddings are transformers' own. It computes in float32, one sample at a time: the results do not depend on how samples
are spread over processes.
"""

from __future__ import annotations

from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.names import layer_prefix
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig, one_layer_config
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.products import keep_operands, operand_dtype
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, parts


def load_layer(reader: Reader, config: SourceConfig, layer: int, device: torch.device) -> Any:
    """Decoder layer `layer` of the source as a one-layer model that maps `inputs_embeds` to the layer's output, in
    float32; inside `quick_products`, with the operands of its linear layers in what those compute with."""
    from transformers import AutoModel

    settings = one_layer_config(config)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(settings)  # type: ignore[no-untyped-call]
    model.norm = torch.nn.Identity()
    model.embed_tokens = torch.nn.Identity()
    model.rotary_emb = type(model.rotary_emb)(config=settings)
    prefix, state = layer_prefix(layer), {}
    for name in model.state_dict():
        state[name] = reader.get(prefix + name.removeprefix("layers.0.")).to(torch.float32)
    model.load_state_dict(state, assign=True)
    if (dtype := operand_dtype(device)) != torch.float32:
        keep_operands(model, dtype)
    return model.to(device).eval().requires_grad_(False)


def embed(reader: Reader, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the embedding [..., hidden] in float32 for token ids [...]."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    return reader.rows(name, unique).to(torch.float32)[inverse]


class Collector:
    """Adds up what objective `input` needs while samples run through a layer, all in float64; use as a context manager
    around the runs."""

    def __init__(self, model: Any, groups: Groups, statistics: Statistics) -> None:
        self._mlp, self.groups, self.statistics = model.layers[0].mlp, groups, statistics

    def __enter__(self) -> Collector:
        hooks = ((self._mlp.gate_proj, self._add_inputs), (self._mlp.down_proj, self._add_outputs))
        self._handles = [module.register_forward_hook(hook) for module, hook in hooks]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add_inputs(self, _: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.statistics.add("inputs", inputs[0].to(torch.float64))

    def _add_outputs(self, down: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """One group adds all of the output."""
        whole = self.groups.count == 1 and not self.groups.narrow
        for group, part in enumerate([output] if whole else parts(self.groups, inputs[0], down.weight.T)):
            self.statistics.add("outputs", part.to(torch.float64), group)


def decode(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """One sample [length, hidden] through the layer."""
    return decode_together(model, hidden[None])[0]


def decode_together(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Some samples [samples, length, hidden] through the layer.

    The mask of ones says that nothing is padding; without it some versions of transformers look for packed sequences
    and build a mask of length x length, to the same bits.
    """
    ones = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    output: torch.Tensor = model(inputs_embeds=hidden, attention_mask=ones, use_cache=False).last_hidden_state
    return output


@torch.no_grad()
def run_sample(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """`decode` without a graph."""
    return decode(model, hidden)


class UpToMlp:
    """A layer of `load_layer` up to its MLP, which it loses."""

    def __init__(self, model: Any) -> None:
        self._model, self._norm = model, model.layers[0].post_attention_layernorm
        model.layers[0].mlp = _Nothing()

    def middle(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the MLP's output is added to, of one sample [length, hidden]."""
        return run_sample(self._model, hidden)

    def read(self, middle: torch.Tensor) -> torch.Tensor:
        """What gate and up read."""
        x: torch.Tensor = self._norm(middle)
        return x


class _Nothing(torch.nn.Module):
    """Zero, whatever comes in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)
