"""SVD-LLM's whitening by its authors' code, with the model, calibration tokens, texts and windows of accuracy.py.

    python benchmarks/svd_llm.py --svd-llm CHECKOUT --model SMOLLM2 --news lee_background.cor [--ratios 0.05 0.10 0.20]

    python benchmarks/svd_llm.py --svd-llm CHECKOUT --model SMOLLM2 --cost

CHECKOUT is a checkout of github.com/AIoT-MLSys-Lab/SVD-LLM (commit 1c1009a), not copied here. Its functions
`profle_svdllm` and `whitening` and its class SVD_LlamaMLP run as they are, in float32 on the CPU; they see the MLP
projections only, as this project factors no attention. Appends one row a ratio and text to
benchmarks/data/accuracy.jsonl; `accuracy.py --figures` puts them into docs/accuracy.md.

With --cost it compresses once with their code and once with the default recipe, at ratio 0.10 and one thread in this
process, and appends the CPU seconds of both to benchmarks/data/cost.jsonl, ours by what it was doing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from accuracy import COST, ROOT, add, counted, rows, scores, texts
from compress import processor
from where_time_goes import compress_timed

RATIO = 0.10  # of the run whose cost is measured

NOT_NEEDED = {  # what SVDLLM.py imports and the two functions do not use
    "utils.data_utils": (),
    "evaluater": (),
    "component.svd_mistral": ("SVD_MistralAttention", "SVD_MistralMLP"),
    "component.svd_opt": ("SVDOPTDecoderLayer",),
}


def load(checkout: Path) -> Any:
    """The module SVDLLM of the checkout, which sees the MLP's linear layers only."""
    for name, members in NOT_NEEDED.items():
        sys.modules[name] = ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member, None)
    sys.path.insert(0, str(checkout))
    import SVDLLM  # type: ignore[import-not-found]

    every = SVDLLM.find_layers
    SVDLLM.find_layers = lambda layer: {n: m for n, m in every(layer).items() if n.startswith("mlp.")}
    SVDLLM.SVD_LlamaAttention = lambda **_: None
    return SVDLLM


def run(args: argparse.Namespace) -> None:
    import torch
    import transformers

    from nxdi_svd_plugin.compress.run.job import prepare
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.recipe import from_dict
    from nxdi_svd_plugin.report.peak import peak_memory

    have = {(row["method"], row["ratio"]) for row in rows()}
    recipe = from_dict({"recipe": "paper", "block": 1})
    samples = prepare(args.model, recipe).samples
    peer, contents, tokenizer = load(args.svd_llm), texts(args.news), load_tokenizer(args.model)
    dense = load_model(args.model, dtype=torch.float32).eval()
    began, cpu = time.monotonic(), time.process_time()
    profile = peer.profle_svdllm("llama", dense, [{"input_ids": ids[None]} for ids in samples], "cpu")
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    for ratio in args.ratios:
        if ("svd-llm-own", ratio) in have:
            continue
        model, began, cpu_began = copy.deepcopy(dense), time.monotonic(), time.process_time()
        peer.whitening("llama", model, profile, 1 - ratio, "cpu")
        stored = sum(p.numel() for layer in model.model.layers for p in layer.mlp.parameters())
        full = sum(p.numel() for layer in dense.model.layers for p in layer.mlp.parameters())
        rank = model.model.layers[0].mlp.up_v_proj.out_features
        base = {
            **counted("svd-llm-own", ratio, stored, full),
            "seconds": wall + time.monotonic() - began,
            "cpu_seconds": cpu + time.process_time() - cpu_began,
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory(),
            "ranks": {"least": rank, "most": rank, "dense": 0},
            "growth": 0.0,
            "source": f"github.com/AIoT-MLSys-Lab/SVD-LLM {commit(args.svd_llm)}",
            "calibration": {**dataclasses.asdict(recipe.calibration), "tokens": samples.numel()},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": platform.machine(),
            "measured": "CPU, torch, on a shared 2-core machine",
        }
        found = scores(model.to(torch.bfloat16), tokenizer, contents)
        add([{**base, **result} for result in found.values()])
        print(ratio, [(name, round(result["perplexity"], 2)) for name, result in found.items()], flush=True)


def cost(args: argparse.Namespace) -> None:
    import torch
    import transformers

    from nxdi_svd_plugin.compress.run.job import prepare
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.recipe import from_dict

    torch.set_num_threads(1)
    recipe = from_dict({"recipe": "default", "ratio": RATIO, "dtype": "bfloat16"})
    samples = prepare(args.model, recipe).samples
    peer, dense, began = load(args.svd_llm), load_model(args.model, dtype=torch.float32).eval(), time.process_time()
    profile = peer.profle_svdllm("llama", dense, [{"input_ids": ids[None]} for ids in samples], "cpu")
    peer.whitening("llama", dense, profile, 1 - RATIO, "cpu")
    theirs = time.process_time() - began
    del dense, profile
    with tempfile.TemporaryDirectory() as folder:
        ours = compress_timed(args.model, Path(folder) / "out", recipe)
    row = {
        "model": "SmolLM2-135M-Instruct",
        "ratio": RATIO,
        "tp_degree": recipe.tp_degree,
        "tokens": samples.numel(),
        "threads": 1,
        "svd_llm_cpu_seconds": round(theirs, 1),
        "default_cpu_seconds": ours,
        "ratio_to_svd_llm": round(ours["all"] / theirs, 2),
        "source": f"github.com/AIoT-MLSys-Lab/SVD-LLM {commit(args.svd_llm)}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": f"{processor()}, shared with other jobs",
        "measured": "process CPU time, one after the other in one process",
    }
    with open(COST, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


def commit(checkout: Path) -> str:
    """The commit that is checked out."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svd-llm", type=Path, required=True, help="checkout of SVD-LLM")
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--news", type=Path, help="lee_background.cor, needed without --cost")
    parser.add_argument("--cost", action="store_true", help="only compare CPU seconds")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.05, 0.10, 0.20])
    sys.path.insert(0, str(ROOT))
    args = parser.parse_args()
    if not args.cost and args.news is None:
        parser.error("--news is needed for perplexities")
    (cost if args.cost else run)(args)


if __name__ == "__main__":
    main()
