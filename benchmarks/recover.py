"""Recovery of compressed SmolLM2 directories, measured on texts that it never sees: rows with provenance.

    python benchmarks/recover.py --dense SMOLLM2 --models OUT05 OUT10 OUT20 --work DIR --news lee_background.cor

Training text: the calibration text that the package ships (written by SmolLM2 itself) and the docstrings of Python's
standard library, in pieces of 4,000 characters, shuffled. Evaluation: `--news`, out of domain, which is
gensim/test/test_data/lee_background.cor of the PyPI package gensim==4.3.3 (ABC news), and pydoc_data.topics, a
neighbour of the docstrings. One row a model and text goes to benchmarks/data/recover.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import platform
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "recover.jsonl"
WINDOW, WINDOWS = 512, 16  # as benchmarks/accuracy.py
PIECE, MOST = 4000, 700_000
MODULES = (
    "argparse asyncio collections ctypes datetime decimal difflib email fractions functools heapq http.client imaplib "
    "inspect itertools json logging mailbox math multiprocessing optparse os pathlib pickle random re shutil socket "
    "sqlite3 statistics string subprocess tarfile tempfile threading turtle typing unittest urllib.request zipfile"
).split()


def docstrings() -> str:
    """Long docstrings of the standard library, in an order that depends on the Python version alone."""
    found = set()
    for module in map(importlib.import_module, MODULES):
        for value in vars(module).values():
            members = vars(value).values() if inspect.isclass(value) else ()
            for text in (getattr(item, "__doc__", None) for item in (value, *members)):
                if isinstance(text, str) and len(text) > 400:
                    found.add(inspect.cleandoc(text))
    ordered = sorted(found)
    random.Random(1).shuffle(ordered)
    return "\n\n".join(ordered)[:MOST]


def corpus(path: Path) -> Path:
    """The training file."""
    from nxdi_svd_plugin import texts

    pieces = []
    for text in (texts.read_text(texts.BUILTIN).content, docstrings()):
        pieces += [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    random.Random(0).shuffle(pieces)
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return path


def measured(directory: Path, contents: dict[str, str]) -> dict[str, float]:
    """Perplexity of each text's first windows, in float32."""
    import torch

    from nxdi_svd_plugin.evaluate.perplexity import measure, token_ids
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

    model, tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
    tokens = {name: token_ids(tokenizer, content, WINDOW * WINDOWS) for name, content in contents.items()}
    return {name: measure(model, ids, WINDOW).perplexity for name, ids in tokens.items()}


def recovered(args: argparse.Namespace, model: Path, data: Path) -> Path:
    """Run `nxdi-svd recover` in a process of its own."""
    output = args.work / f"{model.name}-recovered"
    if not (output / "config.json").exists():
        command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "recover", "--model", str(model)]
        command += ["--data", str(data), "--output", str(output), "--teacher", str(args.dense), *args.options.split()]
        command += ["--resume"] if (output / ".unfinished").exists() else []
        subprocess.run(command, check=True, cwd=ROOT)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="compressed directories")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--news", type=Path, required=True)
    parser.add_argument("--options", default="--precision bfloat16", help="further options of `nxdi-svd recover`")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from nxdi_svd_plugin.texts import HELDOUT, read_text

    args.work.mkdir(parents=True, exist_ok=True)
    contents = {"pydoc": read_text(HELDOUT).content, "news": args.news.read_text()}
    data, dense = corpus(args.work / "corpus.jsonl"), measured(args.dense, contents)
    for model in args.models:
        output = recovered(args, model, data)
        report = json.loads((output / "report.json").read_text())
        before, after, recovery = measured(model, contents), measured(output, contents), report["recovery"]
        for name, content in contents.items():
            row = {"model": "SmolLM2-135M-Instruct", "ratio": report["ratio"]["mlp"], "text": name}
            row |= {"text_sha256": hashlib.sha256(content.encode()).hexdigest(), "window": WINDOW, "windows": WINDOWS}
            row |= {"dense": dense[name], "compressed": before[name], "recovered": after[name]}
            row |= {key: recovery[key] for key in ("settings", "loss", "data", "best_step", "perplexity", "seconds")}
            row |= {"recipe": report["recipe"], "machine": platform.machine(), "measured": "CPU, shared 2-core machine"}
            with open(ROWS, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{model.name} {name}: {dense[name]:.2f} dense, {before[name]:.2f} -> {after[name]:.2f}", flush=True)


if __name__ == "__main__":
    main()
