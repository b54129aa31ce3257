"""Installs other transformers versions, each with what it requires, into DIR/<version>; `make compat` calls it.

    python tests/compat/prepare.py .cache/compat

tests/modeling/test_compat.py puts each of them first on PYTHONPATH. torch stays the environment's, and so does numpy.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# What NxDI of SDK 2.26, 2.27 and 2.28 pins, and the newest 5.x, which needs Python 3.11. The environment's own is left
# out: all other tests run on it.
VERSIONS = ("4.51.3", "4.56.2", "4.57.6", *(("5.23.0",) if sys.version_info >= (3, 11) else ()))


def prepare(directory: Path) -> None:
    """Install what is missing; a version's folder appears when it is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    constraints = directory / "constraints.txt"
    constraints.write_text(f"numpy=={version('numpy')}\n")
    for wanted in (v for v in VERSIONS if v != version("transformers")):
        target, partial = directory / wanted, directory / f".{wanted}.partial"
        if target.exists():
            continue
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(partial), "-c", str(constraints), f"transformers=={wanted}"], check=True)
        os.replace(partial, target)
        print(target)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
