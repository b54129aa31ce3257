"""The serving tests of integration/nxdi, on the CPU, so that they are known to work up to the device."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_integration_files_run_on_a_cpu():
    if not (os.environ.get("NXDI_SVD_NXDI_SOURCES") or importlib.util.find_spec("neuronx_distributed_inference")):
        pytest.skip("NXDI_SVD_NXDI_SOURCES is not set and no NxDI is installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "integration/nxdi", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
