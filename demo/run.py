"""The main job on a real model: SmolLM2 is compressed at ratio 0.10, then compared with the dense model.

Runs the nxdi-svd commands that a user types. demo/out/ holds the compressed model with its report.json, and report.md
with its picture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from smollm2 import make

HERE = Path(__file__).parent
OUT = HERE / "out"
CACHE = Path(os.environ.get("NXDI_SVD_CACHE", HERE.parent / ".cache"))
RATIO = "0.10"
PROMPT = "What is the capital of France?"
PARTS = {
    "compress": (130, "run the calibration text through the model, factor its MLPs and write a Hugging Face directory"),
    "verify": (8, "check the directory: names, shapes, values, hashes, and all that was not compressed bit by bit"),
    "evaluate": (30, "perplexity of both models on 8,192 tokens that the calibration has not seen"),
    "generate": (8, "one answer"),
    "report": (6, "report.md and its picture"),
}
"""Command -> (seconds on 2 idle cores, what it does)."""


def nxdi_svd(command: str, *words: str) -> dict:
    """Say what a command does, run it, and return its JSON object."""
    seconds, what = PARTS[command]
    print(f"\n{what}; about {seconds} s\n$ nxdi-svd {command} {' '.join(words)}", flush=True)
    run = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", command, *words, "--json"]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"nxdi-svd {command} failed with exit code {done.returncode}; its message is above")
    return json.loads(done.stdout)


def answer(model: str) -> str:
    """What a model says to PROMPT."""
    found = nxdi_svd("generate", "--model", model, "--prompt", PROMPT, "--chat", "--max-new-tokens", "32")
    return str(found["text"]).strip()


def main() -> None:
    print("SmolLM2-135M-Instruct as a Hugging Face directory: a download of 85 MB and about 25 s, once", flush=True)
    dense, small = str(make(CACHE / "smollm2")), str(OUT / "smollm2-r10")
    total = sum(PARTS[part][0] for part in (*PARTS, "generate"))
    print(f"Then {total // 60 + 1} minutes on 2 idle cores: save {RATIO} of the MLP weights, and see what that costs.")
    start = time.monotonic()
    nxdi_svd("compress", "--model", dense, "--output", small, "--ratio", RATIO, "--overwrite")
    nxdi_svd("verify", small, "--base", dense)
    nxdi_svd("evaluate", "--model", small, "--base", dense, "--max-tokens", "8192", "--record")
    answers = {"dense": answer(dense), "compressed": answer(small)}
    report, *pictures = nxdi_svd("report", small, "--output", str(OUT))["files"]
    print(f"\n{time.monotonic() - start:.0f} s after the downloads; the compressed model is {small}\n")
    print(Path(report).read_text())
    print("\n".join(f"picture: {picture}" for picture in pictures))
    for name, text in answers.items():
        print(f"{name:>10}: {PROMPT} -> {text!r}")


if __name__ == "__main__":
    main()
