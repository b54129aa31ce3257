"""What one transformers version writes, and what it reads; tests/modeling/test_compat.py runs it under another one.

python exchange.py OURS THEIRS       # prints what this version makes of OURS, then writes THEIRS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_models import save_dense

from nxdi_svd_plugin import compress, load_pretrained
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recipe import Calibration, Recipe

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen."
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write(folder: Path) -> None:
    """dense/ with a RoPE that is no default, svd/ compressed from it, and written.json, what `read` makes of both."""
    save_dense(folder / "dense", "llama", rope_theta=3e5, rope_scaling=SCALING, dtype=torch.bfloat16)
    recipe = Recipe(block=2, ratio=0.2, calibration=Calibration(samples=2, length=32))
    compress(folder / "dense", folder / "svd", recipe, progress=False)
    (folder / "written.json").write_text(json.dumps(read(folder)))


def read(folder: Path) -> dict[str, Any]:
    """Tokens, last logits in float32, and the dtype of both directories."""
    ids = load_tokenizer(folder / "svd")(TEXT)["input_ids"]
    assert ids == load_tokenizer(folder / "dense")(TEXT)["input_ids"]
    found: dict[str, Any] = {"ids": ids}
    for name, load in (("dense", load_model), ("svd", load_pretrained)):
        with torch.no_grad():
            found[name] = load(folder / name, torch.float32)(torch.tensor([ids])).logits[0, -1].tolist()
        found[name + " dtype"] = str(load(folder / name).dtype)
    return found


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]))))
    write(Path(sys.argv[2]))
