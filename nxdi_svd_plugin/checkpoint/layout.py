"""Where every tensor of an output will be: shards, headers and byte offsets, known before the first tensor is computed.

The format is safetensors: 8 bytes of header length (little endian), a JSON header, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nxdi_svd_plugin.checkpoint.names import SINGLE_FILE, shard_name
from nxdi_svd_plugin.stored.dtypes import DTYPES

WORKING = {torch.float64: "F64", torch.int64: "I64"}  # in working files alone
CODES = {**WORKING, **{getattr(torch, name): dtype.code for name, dtype in DTYPES.items()}}
"""torch's dtype to the code in a safetensors header."""
Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be: its header bytes and the absolute offset of each tensor."""

    name: str
    header: bytes
    offsets: dict[str, int]
    size: int


def tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Size of a tensor in bytes."""
    return math.prod(shape) * dtype.itemsize


def plan_shards(entries: Entries, shard_size: int) -> list[Shard]:
    """Spread tensors over files of at most `shard_size` bytes, in the given order; a larger tensor has a file of its
    own."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, (dtype, shape) in entries.items():
        size = tensor_bytes(dtype, shape)
        if groups[-1] and used + size > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return [_shard(shard_name(i, len(groups)), group, entries) for i, group in enumerate(groups)]


def _shard(file: str, names: list[str], entries: Entries) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    # Wider types first: every tensor then starts at a multiple of its element size.
    for name in sorted(names, key=lambda n: -entries[n][0].itemsize):
        dtype, shape = entries[name]
        end = position + tensor_bytes(dtype, shape)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        starts[name], position = position, end
    first = head(header)
    return Shard(file, first, {name: len(first) + start for name, start in starts.items()}, len(first) + position)


def head(header: Mapping[str, object]) -> bytes:
    """The first bytes of a safetensors file."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as they are stored."""
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def index_json(shards: list[Shard], entries: Entries) -> dict[str, object] | None:
    """The content of model.safetensors.index.json; None for a single file, which has no index."""
    if [shard.name for shard in shards] == [SINGLE_FILE]:
        return None
    total = sum(tensor_bytes(*entry) for entry in entries.values())
    weight_map = {name: shard.name for shard in shards for name in shard.offsets}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
