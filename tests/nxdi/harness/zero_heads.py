"""SmolLM2 with a group of zero heads: 12 query and 4 key heads instead of 9 and 3, the same function.

Stock NxDI cannot shard 9 and 3 heads over 2 ranks. A head whose o_proj columns are zero adds nothing to the output.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

QUERY, KEYS, DIM = 3, 1, 64  # heads added


def add_zero_heads(source: Path, target: Path) -> Path:
    """Copy a Llama directory with one more zero key head and its query heads."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    config["num_attention_heads"] += QUERY
    config["num_key_value_heads"] += KEYS
    config["head_dim"] = DIM
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for key, tensor in tensors.items():
        if key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            heads = QUERY if "q_proj" in key else KEYS
            tensors[key] = torch.cat([tensor, tensor.new_zeros(heads * DIM, tensor.shape[1])])
        elif key.endswith("o_proj.weight"):
            tensors[key] = torch.cat([tensor, tensor.new_zeros(len(tensor), QUERY * DIM)], 1)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
