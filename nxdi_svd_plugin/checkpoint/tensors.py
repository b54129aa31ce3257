"""Name and shape of every tensor of a model, dense or compressed, from config.json alone: neither torch nor
transformers is imported. The tests compare with the state dicts of transformers' own classes.
"""

from __future__ import annotations

import math

from nxdi_svd_plugin.checkpoint.names import EMBEDDING, FINAL_NORM, HEAD, layer_prefix, mlp_weights
from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.stored.layers import Layers
from nxdi_svd_plugin.stored.projection import PROJECTIONS

Shapes = dict[str, tuple[int, ...]]
QWEN3_DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128}
"""Of transformers' Qwen3Config, for keys that a config.json leaves out; a Llama's follow from its other sizes."""


def expected_tensors(config: SourceConfig) -> Shapes:
    """Name and shape of every tensor of the dense model, `lm_head.weight` included when it is not tied."""
    tied = {HEAD} if config.raw.get("tie_word_embeddings", False) else set()
    return {name: shape for name, shape in all_tensors(config).items() if name not in tied}


def stored_tensors(config: SourceConfig, layers: Layers) -> Shapes:
    """Name and shape of every tensor of a model with these MLPs, `lm_head.weight` included even when it is tied."""
    shapes = all_tensors(config)
    for i, mlp in layers.items():
        for _, weight in mlp_weights(i):
            del shapes[weight]
        shapes |= {f"{layer_prefix(i)}mlp.{name}": shape for name, shape in mlp.tensors(config.hidden).items()}
    return shapes


def all_tensors(config: SourceConfig) -> Shapes:
    """Name and shape of every tensor of the dense model, `lm_head.weight` included even when it is tied."""
    one = layer_tensors(config)
    table = (config.raw["vocab_size"], config.hidden)
    layers = {layer_prefix(i) + name: shape for i in range(config.layers) for name, shape in one.items()}
    return {EMBEDDING: table, **layers, FINAL_NORM: (config.hidden,), HEAD: table}


def layer_tensors(config: SourceConfig) -> Shapes:
    """One decoder layer, names without its prefix: attention (with biases if it has them), MLP and norms."""
    hidden = config.hidden
    queries, keys, width = heads(config)
    sides = {"q": (queries * width, hidden), "k": (keys * width, hidden), "v": (keys * width, hidden)}
    sides["o"] = (hidden, queries * width)
    shapes: Shapes = {f"self_attn.{name}_proj.weight": shape for name, shape in sides.items()}
    if config.raw.get("attention_bias"):
        shapes |= {f"self_attn.{name}_proj.bias": (out,) for name, (out, _) in sides.items()}
    if config.model_type == "qwen3":
        shapes |= {f"self_attn.{name}_norm.weight": (width,) for name in ("q", "k")}
    shapes |= {f"mlp.{name}.weight": config.dims(name)[::-1] for name in PROJECTIONS}
    return shapes | {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}


def heads(config: SourceConfig) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the width of one head, as transformers completes what is not given."""
    raw = {**(QWEN3_DEFAULTS if config.model_type == "qwen3" else {}), **config.raw}
    queries = int(raw["num_attention_heads"])
    return queries, raw.get("num_key_value_heads") or queries, raw.get("head_dim") or config.hidden // queries


def parameters(config: SourceConfig) -> int:
    """Numbers in the whole dense model, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())
