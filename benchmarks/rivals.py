"""Rivals by their published code, with the model, calibration tokens, texts and windows of accuracy.py.

    python benchmarks/rivals.py --rival pifa --checkout CHECKOUT --model SMOLLM2 --news lee_background.cor
        [--ratios 0.10 0.20 0.30] [--work DIR]

CHECKOUT is a checkout of the repository that RIVALS names, not copied here. Its functions run as they are, in float32
on the CPU (bfloat16 where the rival's row says so); rivals_*.py has the calls, and what has to be in their way so that
they see the MLP projections only (this project leaves attention alone) and run without a GPU. Appends one row a ratio
and text to benchmarks/data/accuracy.jsonl; `accuracy.py --figures` puts them into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from accuracy import ROOT, add, counted, rows, scores, texts
from svd_llm import commit

RIVALS = {  # method: the file here that calls it, and where its code is
    "pifa": ("rivals_pifa", "github.com/biomedical-cybernetics/pivoting-factorization"),
    "modegpt-mlp": ("rivals_modegpt", "github.com/cbacary/MoDeGPT"),
    "flap": ("rivals_flap", "github.com/CASIA-IVA-Lab/FLAP"),
    "wanda-sp": ("rivals_flap", "github.com/CASIA-IVA-Lab/FLAP"),
    "magnitude-sp": ("rivals_flap", "github.com/CASIA-IVA-Lab/FLAP"),
    "kfac-svd": ("rivals_lems", "github.com/lems-svd/lems"),
    "lems": ("rivals_lems", "github.com/lems-svd/lems"),
}


class Task(NamedTuple):
    """What a rival compresses: `model` in place, to `1 - ratio` of its MLP parameters, with these calibration windows.

    A file rivals_*.py has `statistics(task)`, what all ratios share (of a model that is left as it was), and
    `compress(task, shared)`, which returns ranks, widths and settings for the row.
    """

    method: str
    checkout: Path
    work: Path
    model: Any
    samples: Any
    ratio: float = 0.0


def parameters(model: Any) -> int:
    """Numbers stored for all MLPs: weights, factors and biases; not the indices of what was kept."""
    return sum(p.numel() for layer in model.model.layers for p in layer.mlp.parameters())


def round_weights(model: Any) -> Any:
    """All parameters in bfloat16; buffers (rotary frequencies, indices) stay as they are, as when a file is loaded."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval()


def run(args: argparse.Namespace) -> None:
    import torch
    import transformers

    from nxdi_svd_plugin.compress.run.job import prepare
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.recipe import from_dict
    from nxdi_svd_plugin.report.peak import peak_memory

    have = {(row["method"], row["ratio"]) for row in rows()}
    name, source = RIVALS[args.rival]
    rival = importlib.import_module(name)
    recipe = from_dict({"recipe": "paper", "block": 1})
    job = prepare(args.model, recipe)
    samples = job.samples
    contents, tokenizer = texts(args.news), load_tokenizer(args.model)
    dense = load_model(args.model, dtype=torch.float32).eval()
    task, full = Task(args.rival, args.checkout, args.work, dense, samples), parameters(dense)
    began, cpu = time.monotonic(), time.process_time()
    shared = rival.statistics(task._replace(model=copy.deepcopy(dense)))
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    for ratio in args.ratios:
        if (args.rival, ratio) in have:
            continue
        model, began, cpu_began = copy.deepcopy(dense), time.monotonic(), time.process_time()
        found = rival.compress(task._replace(model=model, ratio=ratio), shared)
        stored = parameters(model)
        base = {
            **counted(args.rival, ratio, stored, full),
            "seconds": wall + time.monotonic() - began,
            "cpu_seconds": cpu + time.process_time() - cpu_began,
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory(),
            **found,
            "source": f"{source} {commit(args.checkout)}",
            "calibration": {
                **dataclasses.asdict(recipe.calibration),
                "sha256": job.text.sha256,
                "tokens": samples.numel(),
            },
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": platform.machine(),
            "measured": "CPU, torch, on a shared 2-core machine",
        }
        result = scores(round_weights(model), tokenizer, contents)
        add([{**base, **row} for row in result.values()])
        print(ratio, json.dumps({t: round(row["perplexity"], 2) for t, row in result.items()}), stored, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", choices=tuple(RIVALS), required=True)
    parser.add_argument("--checkout", type=Path, required=True, help="checkout of the rival's repository")
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--news", type=Path, required=True, help="lee_background.cor")
    parser.add_argument("--work", type=Path, help="where kfac-svd and lems keep what all ratios share")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.10, 0.20, 0.30])
    sys.path.insert(0, str(ROOT))
    run(parser.parse_args())


if __name__ == "__main__":
    main()
