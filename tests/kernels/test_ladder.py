"""The ladder: it holds on the simulator, and a fault planted in a rung is reported as what it is."""

import dataclasses
import os
import re
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import planted_rungs
import pytest

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels.ladder.climb import climb
from nxdi_svd_plugin.kernels.ladder.devices import MOVED
from nxdi_svd_plugin.kernels.ladder.profile import counters
from nxdi_svd_plugin.kernels.ladder.rungs import Rung, Sizes, from_json, ladder
from nxdi_svd_plugin.kernels.ladder.ulps import ulps
from nxdi_svd_plugin.kernels.tiling.decode import TOKENS

RUNG = Rung("matmul", "plain", 1, Sizes(256, 512, 128, 128), "nxdi_svd_plugin.kernels.ladder.cases:matmul")


def planted(name):
    return dataclasses.replace(RUNG, kernel=name, builder=f"planted_rungs:{name}")


def test_the_whole_ladder_holds_on_the_simulator(tmp_path):
    rungs = ladder("simulator")
    assert {rung.tokens for rung in rungs if rung.kernel != "mlp"} == {1, 512}
    assert {rung.tokens for rung in rungs if rung.kernel == "mlp"} == {1, TOKENS}
    assert {(r.kernel, r.form) for r in rungs} >= {
        (k, f) for k in ("up_gate", "down") for f in ("pair", "interpolative")
    }
    for result in climb("simulator", rungs, tmp_path, 60):
        assert result.ok, (result.rung, result.error, result.log.read_text())
        assert result.found["us"] > 0 and result.found["step"] == "done"


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("fails", "error", r"step 'compile and run': SimulatorError: .*128"),
        ("wrong", "wrong", r"[\d.]+ ulps of bfloat16 from numpy, 1.0 allowed"),
        ("not_a_number", "wrong", "inf ulps"),
        ("zeros", "not run", "0 bytes read of 262656 and 1024 written of 1024"),
        ("crashes", "crashed", r"signal SIGABRT in step 'build': \[XYZ123\] nothing left to say"),
        ("no_such_builder", "error", "step 'build': AttributeError"),
    ],
)
def test_a_planted_fault_is_reported_and_the_next_rung_is_climbed(tmp_path, name, status, error):
    bad, good = climb("simulator", [planted(name), RUNG], tmp_path, 60)
    assert bad.status == status and not bad.ok
    assert bad.log.exists()
    assert re.search(error, bad.error), bad.error
    assert good.ok


def test_a_hang_is_killed_with_what_it_started(tmp_path):
    [result] = climb("simulator", [planted("hangs")], tmp_path, 5)
    assert (result.status, result.error) == ("killed", "still in step 'compile and run' after 5 s")
    [file] = tmp_path.rglob(planted_rungs.PID)
    ends = time.monotonic() + 10  # the signal was sent; how soon it is delivered is the machine's business
    while alive(file.read_text()) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not alive(file.read_text()), "the grandchild outlived its rung"


def alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


def test_rungs_survive_the_way_to_their_process():
    assert from_json(RUNG.to_json()) == RUNG


def test_ulps_are_those_of_bfloat16():
    """Next to 1 a unit is 2^-7, next to 0.9 half of that; small values count in units of the root mean square."""
    exact = np.array([1.0, 0.9, 1.0, 1.0])
    for at, unit in ((0, 2.0**-7), (1, 2.0**-8)):
        off = exact.copy()
        off[at] += 3 * unit
        assert ulps(off, exact) == pytest.approx(3)
    neighbours = np.array([1.0, 1.0 + 2.0**-7]).astype(ml_dtypes.bfloat16).astype(float)
    assert ulps(neighbours[:1], neighbours[1:]) == pytest.approx(1)
    assert ulps(np.array([1e-9, 1.5, 1.5]), np.array([0.0, 1.5, 1.5])) < 1e-6
    assert ulps(np.array([np.nan]), np.array([1.0])) == np.inf
    assert ulps(np.zeros(3), np.zeros(3)) == 0


def test_a_summary_without_counters_is_named():
    found = counters([{"nc": {"hbm_read_bytes": 3, "hbm_write_bytes": "4"}}], MOVED)
    assert found == {"hbm_read_bytes": 3, "hbm_write_bytes": 4}
    with pytest.raises(KernelError, match="no \\['hbm_write_bytes'\\]"):
        counters({"hbm_read_bytes": 3}, MOVED)


FAKE = {
    "neuronxcc/__init__.py": "",
    "neuronxcc/nki/language.py": "import sys\nfrom nxdi_svd_plugin.simulator.front import language\n"
    "sys.modules[__name__] = language\n",
    "neuronxcc/nki/isa.py": "import sys\nfrom nxdi_svd_plugin.simulator.front import isa\n"
    "sys.modules[__name__] = isa\n",
    "neuronxcc/nki/__init__.py": """
import json, types
from pathlib import Path
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.simulator.front.nki_api import nki as simulated

jit = simulated.jit

def baremetal(save_neff_name, save_trace_name, artifacts_dir):
    place = Path(artifacts_dir)
    assert place.is_absolute() and not list(place.iterdir()) and save_neff_name == "file.neff"

    def compiled(kernel):
        def run(*arrays, **options):
            (place / "log-neuron-cc.txt").write_text("as the compiler would")
            output, trace = simulate(kernel, *arrays, **options)
            moved = {"hbm_read_bytes": trace.hbm_read_bytes, "hbm_write_bytes": trace.hbm_write_bytes}
            Path(save_trace_name).write_text(json.dumps({"summary": [moved]}))
            return output
        return run
    return compiled

def benchmark(warmup, iters):
    def timed(kernel):
        def run(*arrays, **options):
            latency = types.SimpleNamespace(get_latency_percentile=lambda percentile: 1000 + percentile)
            run.benchmark_result = types.SimpleNamespace(nc_latency=latency)
        return run
    return timed
""",
    "neuronx_cc-2.21.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: neuronx-cc\nVersion: 2.21.1\n",
}
"""A package of the compiler's names and argument lists (nki/api/nki/__init__.py of aws-neuron-sdk v2.26.1)."""
PROFILER = """#!/bin/sh
# neuron-profile view -n NEFF -s TRACE --output-format summary-json --output-file FILE
test "$1 $2 $4 $6 $8" = "view -n -s --output-format --output-file" || test "$7" = summary-json || exit 1
cp "$5" "$9"
"""


@pytest.fixture
def fake_neuronxcc(tmp_path, monkeypatch):
    """The compiler's interface on the simulator, and a neuron-profile: what shows that our half of the calls fits."""
    root = tmp_path / "sdk"
    for name, text in FAKE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tool = root / "bin" / "neuron-profile"
    tool.parent.mkdir()
    tool.write_text(PROFILER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(root))
    return root


def test_the_device_half_calls_what_the_sdk_documents(fake_neuronxcc, tmp_path):
    small = [dataclasses.replace(rung, sizes=RUNG.sizes) for rung in ladder("neuron") if rung.tokens == 1]
    for result in climb("neuron", small, tmp_path / "logs", 60):
        assert result.ok, (result.rung, result.error, result.log)
        assert result.found["us"] == 1050 and result.log.name == "log-neuron-cc.txt"


def test_an_error_of_the_device_names_the_compilers_log(fake_neuronxcc, tmp_path):
    (fake_neuronxcc / "bin" / "neuron-profile").write_text("#!/bin/sh\necho no trace >&2; exit 7\n")
    [result] = climb("neuron", [RUNG], tmp_path / "logs", 60)
    assert (result.status, result.log.name) == ("error", "log-neuron-cc.txt")
    assert result.error == "step 'read the counters': KernelError: neuron-profile exited with 7: no trace"
    assert result.found["ulps"] == 0, "what was found before the error is kept"
