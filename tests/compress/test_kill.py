"""Killed by SIGKILL before every kind of change of the output, at random moments, and while replacing a model: --resume
ends with the bytes of an uninterrupted run. Every case of kill_runner.py compares all files."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.recipe import Calibration, Recipe

RUNNER = Path(__file__).with_name("kill_runner.py")
ROOT = RUNNER.parents[2]
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, where there is one: a SIGKILL loses nothing that was written, and no run waits for a disk."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    with tempfile.TemporaryDirectory(dir=MEMORY if in_memory else tmp_path) as made:
        yield Path(made)


def run(source, work, mode, count, seed, recipe):
    """(kills, kinds of changes) of one call of the runner, which imports torch once and forks for each run."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, RUNNER, source, work, mode, str(count), str(seed), recipe],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills, kinds = done.stdout.split()[:3:2]
    return int(kills), int(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_before_a_change_of_every_kind(tiny_llama, folder, recipe):
    kills, kinds = run(tiny_llama, folder, "changes", 1, 3, recipe)
    assert kills >= kinds >= 25


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pair", "input", "drop", "scale"])
def test_the_other_kinds_of_recipes_are_killed_too(tiny_llama, folder, recipe):
    kills, kinds = run(tiny_llama, folder, "changes", 1, 3, recipe)
    assert kills >= kinds >= 25


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_while_an_older_model_is_replaced(tiny_qwen3, folder, recipe):
    kills, kinds = run(tiny_qwen3, folder, "overwrite", 1, 0, recipe)
    assert kills >= kinds >= 35


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_before_a_change_of_every_kind_in_every_layer(tiny_qwen3, folder, recipe):
    """All changes of a layer but the many openings of the file that it writes to; 1000000 in place of 3 takes all."""
    kills, kinds = run(tiny_qwen3, folder, "changes", 3, 1, recipe)
    assert kills > 1.3 * kinds


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_at_random_moments(tiny_qwen3, folder, recipe):
    assert run(tiny_qwen3, folder, "random", 20, 0, recipe)[0] >= 20


RECIPE = Recipe(ratio=0.2, block=2, calibration=Calibration(samples=2, length=16))


def test_resume_of_a_complete_output_is_done_and_of_an_absent_one_begins(tiny_llama, tmp_path, caplog):
    """A run may be killed after its last step, or before its first."""
    output = tmp_path / "out"
    first = compress(tiny_llama, output, RECIPE, resume=True)
    before = {p: p.stat().st_mtime_ns for p in output.iterdir()}
    caplog.set_level("INFO")
    assert compress(tiny_llama, output, RECIPE, resume=True).to_dict() == first.to_dict()
    assert {p: p.stat().st_mtime_ns for p in output.iterdir()} == before
    assert "is complete already; nothing was left to do" in caplog.text


def test_resume_of_a_complete_output_of_another_recipe_is_refused(tiny_llama, tmp_path):
    compress(tiny_llama, tmp_path / "out", RECIPE)
    other = RECIPE.with_changes({"ratio": 0.3})
    with pytest.raises(CheckpointError, match="is complete, and the recipe changed since"):
        compress(tiny_llama, tmp_path / "out", other, resume=True)
