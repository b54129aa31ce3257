"""Names of tensors and files in a Llama or Qwen3 directory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.stored.projection import PROJECTIONS

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
REPORT = "report.json"
UNFINISHED = ".unfinished"
"""Directory inside an output that is not complete: its shards, and what a resumed run needs."""
ORDER = "mlp_order.npy"
NOBODY = -1
"""What a row of it has after the neurons of a layer that keeps fewer."""
"""int32 [layers, I]: where each stored intermediate neuron was in the source; interpolative checkpoints only."""
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
LAYERS = "layers"
"""The method of recovery that trains every matrix of the layers, not the factors alone."""
ROTARY_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Buffers that old Llama checkpoints saved; every transformers version computes them anew."""

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
GENERATION = "generation_config.json"
OTHER_FILES = (GENERATION, "chat_template.jinja", "chat_template.json")


def model_name(directory: Path) -> str:
    """The name of a model by its directory: `org/name` in a Hugging Face cache, else the directory's own.

    A cache has models--org--name/snapshots/<commit>/ (huggingface_hub, "Understand caching").
    """
    place = directory.resolve()
    repository = place.parent.parent.name
    if place.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return place.name


def layer_prefix(layer: int) -> str:
    """Prefix of every tensor of a decoder layer."""
    return f"model.layers.{layer}."


def projection_prefix(layer: int, projection: str) -> str:
    """Prefix of the tensors of one MLP projection, ending in a dot."""
    return f"{layer_prefix(layer)}mlp.{projection}."


def in_a_layer(name: str) -> bool:
    """Whether a tensor is a matrix of a decoder layer that is stored as the dense model has it."""
    return re.fullmatch(r"model\.layers\.\d+\.(mlp|self_attn)\.\w+_proj\.weight", name) is not None


def mlp_weights(layer: int) -> Iterator[tuple[str, str]]:
    """(projection, name of its dense weight) of a layer's three MLP projections."""
    for projection in PROJECTIONS:
        yield projection, projection_prefix(layer, projection) + "weight"


def shard_name(index: int, count: int) -> str:
    """File name of shard `index` (from 0) of `count`, as transformers names them."""
    return SINGLE_FILE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; errors are the caller's.

    Raises:
        CheckpointError: a Git LFS pointer.
    """
    refuse_pointer(path)
    loaded = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError("not a JSON object")
    return loaded


def parse_json(text: str) -> Any:
    """A JSON value; Python would also take NaN and Infinity, and make infinity of 1e999.

    Raises:
        ValueError: not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds {digits[:20]}, which is too large a number")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON")
