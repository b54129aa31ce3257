"""The default recipe against SVD-LLM's whitening at the same parameters: perplexity, bytes, work, time, memory.

    python benchmarks/accuracy.py --model SMOLLM2 --work DIR --news lee_background.cor [--ratios 0.05 0.10 0.20]
    python benchmarks/accuracy.py --figures

The first form appends one row a model and text to benchmarks/data/accuracy.jsonl (rows that are there are not measured
again), the second makes docs/accuracy.png and the tables of docs/accuracy.md out of the rows. `--news` is
gensim/test/test_data/lee_background.cor of the PyPI package gensim==4.3.3 (ABC news, 2000-2001), not copied here.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "accuracy.jsonl"
COST = ROOT / "benchmarks" / "data" / "cost.jsonl"
SAME = ROOT / "benchmarks" / "data" / "generated_heldout.txt"
WINDOW, WINDOWS = 512, 16
WHERE = "CPU, torch, on a shared 2-core machine"
LOW_RANK = {"recipe": "default", "block": 128, "drop": False, "refit": False}
METHODS = {
    "default": {"recipe": "default", "block": 128},
    # what the parts of it do, each without a refit
    "no-refit": {"recipe": "default", "block": 128, "refit": False},
    "no-drop": LOW_RANK,  # below ratio 0.15 this is no-refit
    "drop": {**LOW_RANK, "drop": True},  # from there on this is
    "drop-16": {**LOW_RANK, "block": 16, "drop": True},
    "more-text": {"recipe": "default", "block": 128, "refit": False, "calibration": {"samples": 128}},  # 65,536 tokens
    "scaled": {"recipe": "default", "block": 128, "refit": False, "scale": "builtin-mixed"},
    "one-group": {**LOW_RANK, "tp_degree": 1},
    "four-groups": {**LOW_RANK, "block": 32, "tp_degree": 4},  # a group has 384 neurons
    "pair": {**LOW_RANK, "form": "pair", "tp_degree": 1},  # the paper's form
    "svd-llm": {"recipe": "paper", "block": 1},  # uniform pairs, input whitening, exact rank
}
DOMAINS = {"generated": "in domain", "pydoc": "out of domain", "news": "of a kind that calibration knows"}


def rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def texts(news: Path) -> dict[str, str]:
    from nxdi_svd_plugin.texts import HELDOUT, read_text

    return {"generated": SAME.read_text(), "pydoc": read_text(HELDOUT).content, "news": news.read_text()}


def compress(args: argparse.Namespace, method: str, ratio: float) -> Path:
    """The compressed directory, in bfloat16, made in a process of its own so that its peak memory is its own."""
    output = args.work / f"{method}-{ratio}"
    if not (output / "config.json").exists():
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, __file__, "--model", str(args.model), "--work", str(args.work), "--only-compress"]
        subprocess.run([*command, "--methods", method, "--ratios", str(ratio)], check=True)
    return output


def compress_here(args: argparse.Namespace, method: str, ratio: float) -> None:
    """`nxdi_svd_plugin.compress` with one of METHODS."""
    import nxdi_svd_plugin
    from nxdi_svd_plugin.recipe import from_dict

    recipe = from_dict({**METHODS[method], "ratio": ratio, "dtype": "bfloat16"})
    nxdi_svd_plugin.compress(args.model, args.work / f"{method}-{ratio}", recipe, device="cpu")


def measured(directory: Path, contents: dict[str, str]) -> dict[str, dict]:
    """`scores` of a directory in bfloat16."""
    import torch

    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

    return scores(load_model(directory, dtype=torch.bfloat16).eval(), load_tokenizer(directory), contents)


def scores(model: Any, tokenizer: Any, contents: dict[str, str]) -> dict[str, dict]:
    """Perplexity on the first WINDOWS windows of every text, of a model whose weights and products are bfloat16."""
    from nxdi_svd_plugin.evaluate.perplexity import measure, token_ids

    found = {}
    for name, content in contents.items():
        ids = token_ids(tokenizer, content, WINDOW * WINDOWS)
        result = measure(model, ids, WINDOW)
        found[name] = {
            "perplexity": result.perplexity,
            "predictions": result.tokens,
            "text": name,
            "domain": DOMAINS[name],
            "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "window": WINDOW,
            "dtype": "bfloat16",
        }
    return found


def layer_losses(model: Path, directory: Path, content: str) -> dict:
    """Predicted and measured loss of every layer, one compressed at a time (float32, two windows of `pydoc`)."""
    from nxdi_svd_plugin.evaluate.layer_loss import measure_layers
    from nxdi_svd_plugin.evaluate.perplexity import token_ids
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.report.measured import TextName

    text = TextName("pydoc", hashlib.sha256(content.encode()).hexdigest())
    found = measure_layers(model, directory, token_ids(load_tokenizer(model), content, 2 * WINDOW), WINDOW, text)
    return {"text": "layers", "layer_losses": found.to_dict()}


def sizes(directory: Path) -> dict:
    """MLP numbers, bytes of all weight files, and multiply-adds of all MLPs per token (one a stored number)."""
    from safetensors import safe_open

    mlp = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if ".mlp." in key:
                    mlp += math.prod(file.get_slice(key).get_shape())
    return {"mlp_parameters": mlp, "mlp_bytes_bf16": 2 * mlp, "mlp_multiply_adds_per_token": mlp}


def counted(method: str, ratio: float, stored: int, dense: int) -> dict:
    """What a row says of a model that other code compressed, to `stored` MLP numbers of `dense`."""
    return {
        "method": method,
        "ratio": ratio,
        "model": "SmolLM2-135M-Instruct",
        "mlp_parameters": stored,
        "mlp_bytes_bf16": 2 * stored,
        "mlp_multiply_adds_per_token": stored,
        "ratio_reached": 1 - stored / dense,
    }


def cost(directory: Path) -> dict:
    from nxdi_svd_plugin.report.record import Report

    report = Report.read(directory)
    ranked, widths = [m.rank for m in report.matrices if m.rank], [mlp.width for mlp in report.layers.values()]
    return {
        "ratio_reached": report.ratio.mlp,
        "seconds": report.cost.wall_seconds,
        "cpu_seconds": report.cost.cpu_seconds,
        "peak_memory_bytes": report.cost.peak_bytes,
        "threads": report.cost.threads,
        "calibration": dataclasses.asdict(report.calibration),
        "ranks": {
            "least": min(ranked, default=0),
            "most": max(ranked, default=0),
            "dense": len(report.matrices) - len(ranked),
        },
        "widths": {"least": min(widths), "most": max(widths), "mean": sum(widths) / len(widths)},
        "growth": max((m.growth or 0.0 for m in report.matrices), default=0.0),
        "predicted_loss": sum((m.predicted_loss or 0.0) + (m.drop_loss or 0.0) for m in report.matrices) or None,
        "recipe": report.recipe,
        "versions": report.versions,
    }


def add(new: list[dict], path: Path = ROWS) -> None:
    """Append rows, with the commit that made them."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    with open(path, "a") as file:
        file.writelines(json.dumps({**row, "commit": commit}) + "\n" for row in new)


def run(args: argparse.Namespace) -> None:
    contents, have = texts(args.news), {(row["method"], row["ratio"]) for row in rows()}
    machine = {"machine": platform.machine(), "measured": args.where}
    if ("dense", 0.0) not in have:
        base = {"method": "dense", "ratio": 0.0, "model": "SmolLM2-135M-Instruct", **sizes(args.model), **machine}
        add([{**base, **result} for result in measured(args.model, contents).values()])
    for ratio in args.ratios:
        for method in args.methods:
            if (method, ratio) not in have:
                directory = compress(args, method, ratio)
                base = {"method": method, "ratio": ratio, "model": "SmolLM2-135M-Instruct", **sizes(directory)}
                base |= {**cost(directory), **machine}
                add([{**base, **result} for result in measured(directory, contents).values()])
                if (method, ratio) == ("default", 0.10):
                    add([{**base, **layer_losses(args.model, directory, contents["pydoc"])}])
                print(
                    method,
                    ratio,
                    [(r["text"], round(r["perplexity"], 2)) for r in rows()[-4:] if "perplexity" in r],
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--work", type=Path, help="where the compressed directories go")
    parser.add_argument("--news", type=Path, help="lee_background.cor")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.05, 0.10, 0.20])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--where", default=WHERE, help="of the rows: what ran them")
    parser.add_argument("--figures", action="store_true", help="only make the figure and the tables")
    parser.add_argument("--only-compress", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.only_compress:
        compress_here(args, args.methods[0], args.ratios[0])
    elif args.figures:
        import accuracy_figure
        import accuracy_tables

        files = (ROOT / "benchmarks" / "data").glob("*.jsonl")
        data = {f.stem: [json.loads(line) for line in f.read_text().splitlines()] for f in files}
        accuracy_tables.write(data, ROOT / "docs")
        accuracy_figure.figure(data["accuracy"], data["recover"], data["tasks"], ROOT / "docs" / "accuracy.png")
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        run(args)


if __name__ == "__main__":
    main()
