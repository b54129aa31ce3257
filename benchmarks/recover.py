"""Recovery of compressed SmolLM2 directories, measured on texts that it never sees: rows with provenance.

    nxdi-svd sample --model SMOLLM2 --output own.jsonl --start "<|endoftext|>" --tokens 196608
    python benchmarks/recover.py --dense SMOLLM2 --models OUT20 --work DIR --news FILE --sources DIR --own own.jsonl

Training text, shuffled: the calibration text that the package ships (written by SmolLM2 itself) in pieces of 4,000
characters, the docstrings of Python's standard library, and with `--own` what SmolLM2 wrote for this: at temperature 1
without prompts (`--own-text free`), at 1 with the lines of data/calibration_openings.txt and _beginnings.txt as
`--prompts` (`prompted`), or at 0.8 with these and then without the docstrings (`cool`). With `--own-text kinds` or
`more-news` the file of benchmarks/kinds.py is `--own` and all the training text. The best step is chosen by the
texts of benchmarks/calibration.py; the texts that are scored, those of benchmarks/accuracy.py in its way, were seen by
neither (`pydoc` is a neighbour of the docstrings). One row a model and text goes to benchmarks/data/recover.jsonl.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import platform
import random
import subprocess
import sys
from pathlib import Path

import accuracy
import calibration

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "recover.jsonl"
WINDOW = accuracy.WINDOW
CPU = "CPU, one thread, shared 2-core machine"
PIECE, MOST = 4000, 700_000
BY_PEOPLE = ("kinds", "more-news")  # the texts of benchmarks/kinds.py
KEPT = ("settings", "loss", "data", "validation", "best_step", "history", "perplexity", "seconds")
MODULES = (
    "argparse asyncio collections ctypes datetime decimal difflib email fractions functools heapq http.client imaplib "
    "inspect itertools json logging mailbox math multiprocessing optparse os pathlib pickle random re shutil socket "
    "sqlite3 statistics string subprocess tarfile tempfile threading typing unittest urllib.request zipfile"
).split()


def docstrings() -> str:
    """Long docstrings of the standard library; they depend on the Python version and on what is imported by now."""
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


def cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def corpus(path: Path, args: argparse.Namespace) -> Path:
    """The training file."""
    from nxdi_svd_plugin import texts

    if args.own_text in BY_PEOPLE:
        return args.own
    pieces = cut(texts.read_text(texts.BUILTIN).content)
    if args.own_text != "cool":
        pieces += cut(docstrings())
    if args.own:
        pieces += [json.loads(line)["text"] for line in args.own.read_text().splitlines()]
    random.Random(0).shuffle(pieces)
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return path


def validation(path: Path, sources: Path, model: Path) -> Path:
    """The file that the best step is chosen by: the first 2,048 tokens of every text of benchmarks/calibration.py."""
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    with open(path, "w") as file:
        for text in calibration.texts(sources).values():
            ids = tokenizer(text[:40000], add_special_tokens=False)["input_ids"][: 4 * WINDOW - 1]
            file.write(json.dumps({"text": tokenizer.decode(ids)}) + "\n")
    return path


def recovered(args: argparse.Namespace, model: Path) -> Path:
    """Run `nxdi-svd recover` in a process of its own, if its output is not there."""
    output = args.work / f"{model.name}-recovered"
    if not (output / "config.json").exists():
        command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "recover", "--model", str(model)]
        command += ["--data", str(corpus(args.work / "corpus.jsonl", args)), "--output", str(output)]
        command += ["--validation", str(validation(args.work / "validation.jsonl", args.sources, args.dense))]
        command += ["--teacher", str(args.dense), *args.options.split()]
        command += ["--resume"] if (output / ".unfinished").exists() else []
        subprocess.run(command, check=True, cwd=ROOT)
    return output


def graphics_card() -> str:
    """The name that its driver gives it."""
    import torch

    return torch.cuda.get_device_name()


def rows(args: argparse.Namespace, model: Path, contents: dict[str, str], dense: dict[str, dict]) -> list[dict]:
    """One row a text."""
    output = recovered(args, model)
    report = json.loads((output / "report.json").read_text())
    before, after = accuracy.measured(model, contents), accuracy.measured(output, contents)
    base = {"model": "SmolLM2-135M-Instruct", "ratio": report["ratio"]["mlp"], "recipe": report["recipe"]}
    base |= {key: report["recovery"][key] for key in KEPT} | {"machine": platform.machine()}
    base |= {"optimizer": "Muon", "own_text": args.own_text if args.own else "none", "measured": "CPU"}
    base["trained_on"] = graphics_card() if report["recovery"]["device"] == "cuda" else CPU
    found = []
    for name in contents:
        row = base | {key: dense[name][key] for key in ("text", "text_sha256", "window", "dtype")}
        row |= {"dense": dense[name]["perplexity"], "compressed": before[name]["perplexity"]}
        found.append(row | {"recovered": after[name]["perplexity"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="compressed directories")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--news", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="as benchmarks/calibration.py has them")
    parser.add_argument("--own", type=Path, help="JSON lines of `nxdi-svd sample`")
    written = ("free", "prompted", "cool", *BY_PEOPLE)
    parser.add_argument("--own-text", choices=written, default="free", help="how it was drawn")
    parser.add_argument("--options", default="--method full", help="further options of `nxdi-svd recover`")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    args.work.mkdir(parents=True, exist_ok=True)
    contents = accuracy.texts(args.news)
    dense = accuracy.measured(args.dense, contents)
    for model in args.models:
        accuracy.add(rows(args, model, contents, dense), ROWS)


if __name__ == "__main__":
    main()
