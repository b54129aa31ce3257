"""Running the calibration tokens through one decoder layer at a time, over hidden states stored on disk.

The layer is a transformers LlamaModel or Qwen3Model with one layer and no final norm, so that masks and rotary
embeddings are transformers' own. It computes in float32, one sample at a time: the results do not depend on how samples
are spread over processes.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.names import layer_prefix
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig, one_layer_config
from nxdi_svd_plugin.factorize import covariance


@dataclass(frozen=True)
class Statistics:
    """What the factorization of a layer's MLP needs, summed over the calibration tokens, float64 [hidden, hidden].

    inputs: sum x x^T of what gate and up read.
    outputs: sum y y^T of what down writes.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor


def load_layer(reader: Reader, config: SourceConfig, layer: int, device: torch.device) -> Any:
    """Decoder layer `layer` of the source as a one-layer model that maps `inputs_embeds` to the layer's output, in
    float32."""
    from transformers import AutoModel

    free_layers()
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
    return model.to(device).eval().requires_grad_(False)


def free_layers() -> None:
    """Free the layers that were used before: a forward pass of transformers leaves reference cycles, and several layers
    would stay in memory until Python looks for them."""
    gc.collect()


def embed(reader: Reader, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the embedding [..., hidden] in float32 for token ids [...]."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    return reader.rows(name, unique).to(torch.float32)[inverse]


class Collector:
    """Adds up a layer's statistics while samples run through it; use as a context manager around the runs."""

    def __init__(self, model: Any, hidden: int, device: torch.device) -> None:
        self._mlp = model.layers[0].mlp
        self.statistics = Statistics(covariance.empty(hidden, device), covariance.empty(hidden, device))

    def __enter__(self) -> Collector:
        self._handle = self._mlp.register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _add(self, _: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        covariance.accumulate(self.statistics.inputs, inputs[0])
        covariance.accumulate(self.statistics.outputs, output)


@torch.no_grad()
def run_sample(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """One sample [length, hidden] through the layer."""
    output: torch.Tensor = model(inputs_embeds=hidden[None], use_cache=False).last_hidden_state[0]
    return output
