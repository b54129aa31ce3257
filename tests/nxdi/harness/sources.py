"""Where the real NxDI is, and running the checks of tests/nxdi/real on it, each version in its own process.

NXDI_SVD_NXDI_SOURCES names a directory with <version>/neuronx-distributed-inference and <version>/neuronx-distributed,
checkouts of aws-neuron's repositories (docs/nxdi.md). 0.6 needs transformers 4.51: NXDI_SVD_COMPAT_DIR/4.51.3, made by
`make compat`. An NxDI that is installed (a Neuron DLAMI) is checked too, as version "installed".
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
VERSIONS = ("0.6", "0.7", "0.8", "0.9", "installed")
TRANSFORMERS = {"0.6": "4.51.3"}


def python_path(version: str) -> list[str]:
    """What a version needs on PYTHONPATH; skips the test, with the reason, where it is not on this machine."""
    ours = [str(HERE), str(ROOT / "tests"), str(ROOT)]
    if version == "installed":
        if importlib.util.find_spec("neuronx_distributed_inference") is None:
            pytest.skip("no NxDI is installed in this environment")
        return ours
    sources = os.environ.get("NXDI_SVD_NXDI_SOURCES")
    if not sources:
        pytest.skip(f"NXDI_SVD_NXDI_SOURCES is not set: NxDI {version} is not checked")
    folder = Path(sources) / version
    if not folder.is_dir():
        pytest.skip(f"NXDI_SVD_NXDI_SOURCES has no NxDI {version}")
    return [
        *compat(version),
        *ours,
        str(folder / "neuronx-distributed-inference" / "src"),
        str(folder / "neuronx-distributed" / "src"),
    ]


def compat(version: str) -> list[str]:
    """The folder of the transformers version that an NxDI version pins, if it is not the installed one."""
    wanted = TRANSFORMERS.get(version)
    if wanted is None:
        return []
    folder = Path(os.environ.get("NXDI_SVD_COMPAT_DIR", ROOT / ".cache" / "compat")) / wanted
    if not folder.is_dir():
        pytest.skip(f"NxDI {version} needs transformers {wanted}; `make compat` prepares it")
    return [str(folder)]


def environment(version: str) -> dict[str, str]:
    """The environment of a process that imports this version."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(python_path(version))}


def run_checks(version: str, *arguments: str) -> None:
    """Run `check_*.py` files with pytest on one version; fails with their report, prints their count."""
    command = [sys.executable, "-m", "pytest", "-p", "nxdi_harness", "-p", "no:cacheprovider", "-q", "-rs"]
    command += ["-o", "python_files=check_*.py", "-W", "ignore", "--tb=short", "--show-capture=no", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment(version), capture_output=True, text=True)
    print(found.stdout[-2000:])
    assert found.returncode == 0, f"NxDI {version}\n{found.stdout}\n{found.stderr[-3000:]}"
