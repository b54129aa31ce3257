"""Measured, not modelled: peak memory does not grow with the number of layers, and a disk that fills up on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_dense

from nxdi_svd_plugin.cli.main import main

ROOT = Path(__file__).parents[2]
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "head_dim": 64}
LAYER_BYTES = 4 * (3 * 256 * 1024 + 2 * 256 * 256 + 2 * 256 * 128)
"""MLP and attention of one float32 layer of WIDE."""
CHILD = """
import sys
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.report.peak import peak_memory
from nxdi_svd_plugin.recipe import from_dict
changes = {"block": int(sys.argv[4]), **eval(sys.argv[5]), "calibration": {"samples": 2, "length": 32}}
recipe = from_dict({"recipe": sys.argv[3], **changes})
compress(sys.argv[1], sys.argv[2], recipe, progress=False, device="cpu")
print(peak_memory())
"""


RETURN_AT_ONCE = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
"""glibc gives freed blocks back, so a peak is what the program holds: at most 1 MB apart between runs, 7 without."""


def program(*argv, malloc=(), **options):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **dict(malloc), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True, check=False, **options
    )


PARENT = """
import subprocess, sys
b"x" * 400_000_000
code = "from nxdi_svd_plugin.report.peak import peak_memory; print(peak_memory())"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_peak_memory_is_not_that_of_the_process_that_launched_it():
    """A parent that once held 400 MB launches a process that needs a tenth."""
    done = program("-c", PARENT)
    assert done.returncode == 0, done.stderr
    assert 5e6 < int(done.stdout) < 2e8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "block", "changes"), [("paper", 8, {}), ("default", 8, {"refit": False}), ("default", 128, {})]
)
def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path, recipe, block, changes):
    """24 more layers are 94 MB of weights and more than that of statistics; less than a sixteenth may be seen of them.

    A refit in the default's blocks, where layers have few different ranks: it multiplies by every layer's own factors,
    and oneDNN keeps code for each of up to 1,024 shapes of a product that it has seen, 0.2 MB apiece.
    The smaller model is large enough to fill the two 8 MiB buffers with which a file is hashed.
    """
    peaks = {}
    for layers in (8, 32):
        source = save_dense(tmp_path / f"in{layers}", "llama", num_hidden_layers=layers, shard="5MB", **WIDE)
        done = program("-c", CHILD, source, tmp_path / f"out{layers}", recipe, block, changes, malloc=RETURN_AT_ONCE)
        assert done.returncode == 0, done.stderr
        peaks[layers] = int(done.stdout)
    assert peaks[32] - peaks[8] < 24 * LAYER_BYTES / 16, peaks


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_sentence_and_exit_code_1(tiny_llama, tmp_path):
    """The kernel refuses to let a file grow beyond 50 kB: the model's 200 kB do not fit."""
    import resource

    argv = ["compress", "--model", tiny_llama, "--output", tmp_path / "out", "--block", "2", "--samples", "2"]
    done = program(
        "-m",
        "nxdi_svd_plugin.cli.main",
        *argv,
        "--length",
        "16",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "error: no space left for" in done.stderr and "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "config.json").exists() and (tmp_path / "out" / ".unfinished").is_dir()
    assert main(["compress", *map(str, argv[1:]), "--length", "16", "--resume", "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "svd_llama"
