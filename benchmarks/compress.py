"""Seconds and peak memory of `nxdi-svd compress` against layer shape and number of layers, on random bf16 weights.

    python benchmarks/compress.py --shape 8B --layers 2 [--recipe default] [--ratio 0.20]

Each run appends a row to benchmarks/data/compress.jsonl. The command runs in its own process, whose peak resident size
is measured; CPU seconds stand beside wall seconds because a shared machine stretches the latter.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_models import save_tokenizer  # noqa: E402

from nxdi_svd_plugin.checkpoint.source import read_config  # noqa: E402
from nxdi_svd_plugin.checkpoint.tensors import expected_tensors  # noqa: E402
from nxdi_svd_plugin.compress.plan.cost import peak_memory  # noqa: E402
from nxdi_svd_plugin.recipe import PRESETS, from_dict  # noqa: E402

DATA = ROOT / "benchmarks" / "data" / "compress.jsonl"
# hidden, intermediate, heads, key/value heads, vocabulary: Llama-3.2-1B and Llama-3.1-8B
SHAPES = {"1B": (2048, 8192, 32, 8, 128256), "8B": (4096, 14336, 32, 8, 128256)}
LENGTH = 512


def write_model(directory: Path, shape: str, layers: int) -> Path:
    """Random bf16 weights of that shape, one shard a layer."""
    hidden, intermediate, heads, kv_heads, vocab = SHAPES[shape]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape == "1B",
        "torch_dtype": "bfloat16",
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_tokenizer(directory)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, size in expected_tensors(read_config(directory)).items():
        shards.setdefault(name.split(".")[2] if ".layers." in name else name, {})[name] = size
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards.values()):
        tensors = {name: random_weight(size, generator) for name, size in sizes.items()}
        save_file(tensors, directory / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"model-{number:05d}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def random_weight(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms of one, matrices scaled by 1 / sqrt(fan in)."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.randn(size, generator=generator, dtype=torch.float32).mul_(size[1] ** -0.5).to(torch.bfloat16)


def measure(shape: str, layers: int, recipe: str, ratio: float, samples: int, tp: int) -> dict[str, object]:
    """Compress once in a subprocess and return the row."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", shape, layers)
        command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "compress", "--json"]
        command += ["--model", str(model), "--output", f"{folder}/out", "--recipe", recipe, "--ratio", str(ratio)]
        command += ["--samples", str(samples), "--length", str(LENGTH), "--tp-degree", str(tp)]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
        calibration = {"samples": samples, "length": LENGTH}
        asked = from_dict({"recipe": recipe, "ratio": ratio, "tp_degree": tp, "calibration": calibration})
        modelled = peak_memory(read_config(model), asked).peak
    cost, factored = report["cost"], [record for record in report["matrices"] if record["form"] != "dense"]
    return {
        "shape": shape,
        "hidden": SHAPES[shape][0],
        "intermediate": SHAPES[shape][1],
        "layers": layers,
        "weights": "random bfloat16",
        "recipe": recipe,
        "tp_degree": tp,
        "ratio": ratio,
        "widths": sorted({record["width"] for record in report["matrices"]}),
        "ranks": sorted({record["rank"] for record in factored}),
        "calibration_tokens": samples * LENGTH,
        "wall_seconds_per_layer": round(cost["wall_seconds"] / layers, 1),
        "cpu_seconds_per_layer": round(cost["cpu_seconds"] / layers, 1),
        "factor_wall_seconds": [round(record["seconds"], 1) for record in factored],
        "peak_gib": round(cost["peak_bytes"] / 2**30, 2),
        "modelled_peak_gib": round(modelled / 2**30, 2),
        "threads": cost["threads"],
        "machine": f"{processor()}, {cost['machine']}, shared with other jobs",
        "versions": report["versions"],
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure one row and append it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--recipe", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--ratio", type=float, default=0.10)
    parser.add_argument("--tp-degree", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10, help="windows of 512 tokens")
    args = parser.parse_args()
    row = measure(args.shape, args.layers, args.recipe, args.ratio, args.samples, args.tp_degree)
    DATA.parent.mkdir(parents=True, exist_ok=True)
    with open(DATA, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
