"""Killed by SIGKILL before any change of the output, at random moments, and while replacing a model: --resume ends with
the bytes of an uninterrupted run. Every case of kill_runner.py compares all files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.recipe import Calibration, Recipe

RUNNER = Path(__file__).with_name("kill_runner.py")
ROOT = RUNNER.parents[2]


def run(source, work, mode, count, seed, recipe):
    """Number of kills of one call of the runner, which imports torch once and forks for each run."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, RUNNER, source, work, mode, str(count), str(seed), recipe],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("mode", "count", "recipe"), [("points", 5, "paper"), ("points", 5, "default"), ("overwrite", 5, "paper")]
)
def test_killed_and_resumed(tiny_llama, tmp_path, mode, count, recipe):
    kills = run(tiny_llama, tmp_path, mode, count, 3, recipe)
    assert kills >= count


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["points", "overwrite"])
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_before_many_changes(tiny_qwen3, tmp_path, recipe, mode):
    """A seeded sample of the changes; 1000000 in place of 50 kills before every single one, for an hour."""
    assert run(tiny_qwen3, tmp_path, mode, 50, 0, recipe) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_killed_at_many_random_moments(tiny_qwen3, tmp_path, recipe):
    assert run(tiny_qwen3, tmp_path, "random", 20, 0, recipe) > 15


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
