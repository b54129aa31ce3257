"""The main job on a real model: SmolLM2 is compressed at ratio 0.10, then compared with the dense model.

Runs the nxdi-svd commands that a user types. demo/out/ holds the compressed model with its report.json, and report.md
with its picture.
"""

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


def nxdi_svd(*words: str) -> dict:
    """Run one command, show it, and return its JSON object."""
    print(f"\n$ nxdi-svd {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"nxdi-svd {words[0]} failed with exit code {done.returncode}; its message is above")
    return json.loads(done.stdout)


def main() -> None:
    dense, small = str(make(CACHE / "smollm2")), str(OUT / "smollm2-r10")
    start = time.monotonic()
    nxdi_svd("compress", "--model", dense, "--output", small, "--ratio", RATIO, "--overwrite")
    nxdi_svd("verify", small, "--base", dense)
    nxdi_svd("evaluate", "--model", small, "--base", dense, "--max-tokens", "8192", "--record")
    answers = {
        name: nxdi_svd("generate", "--model", path, "--prompt", PROMPT, "--chat", "--max-new-tokens", "32")["text"]
        for name, path in (("dense", dense), ("compressed", small))
    }
    nxdi_svd("report", small, "--output", str(OUT))
    print(f"\n{(OUT / 'report.md').read_text()}")
    for name, text in answers.items():
        print(f"{name:>10}: {PROMPT} -> {text.strip()!r}")
    print(f"\n{time.monotonic() - start:.0f} s after the downloads; tables and picture: {OUT / 'report.md'}")


if __name__ == "__main__":
    main()
