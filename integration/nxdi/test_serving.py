"""Compile, load, check and measure each model in a process of its own, and keep the rows."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CPU_VERSION = "0.8"


@pytest.fixture
def environment(request):
    """On a CPU without an installed NxDI: the real sources and the test stubs; else this environment."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if request.config.getoption("--device") == "trn1" or importlib.util.find_spec("neuronx_distributed_inference"):
        return {**os.environ, "PYTHONPATH": paths}
    import sources

    return sources.environment(CPU_VERSION)


def test_serving(request, directory, mlp_impl, options, environment, tmp_path):
    device = request.config.getoption("--device")
    request_file, row_file = tmp_path / "request.json", tmp_path / "row.json"
    request_file.write_text(
        json.dumps({"directory": str(directory), "mlp_impl": mlp_impl, "options": options, "device": device})
    )
    command = [sys.executable, str(HERE / "serve.py"), str(request_file), str(row_file)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    row = json.loads(row_file.read_text())
    if request.config.getoption("--rows"):
        with open(request.config.getoption("--rows"), "a") as rows:
            rows.write(json.dumps(row, sort_keys=True) + "\n")
    assert row["device"] == device
    assert row["tokens_equal"], row
    assert row["logit_error"] <= row["logit_error_allowed"], row
    assert row["latency_ms_p50"] > 0 and row["throughput_tokens_per_s"] > 0
