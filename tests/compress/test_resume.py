"""A killed compression continues and ends with the same bytes; anything changed in between is refused."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from nxdi_svd_plugin.checkpoint import working, writer
from nxdi_svd_plugin.compress.run import manifest
from nxdi_svd_plugin.compress.run import run as loop
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError, SvdError
from nxdi_svd_plugin.recipe import Calibration, Recipe

RECIPE = Recipe(ratio=0.2, block=2, calibration=Calibration(samples=6, length=48), shard_size=100_000)
CHILD = """
import sys
import transformers.models.llama.modeling_llama
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.recipe import Calibration, Recipe
recipe = Recipe(ratio=0.2, block=2, calibration=Calibration(samples=6, length=48), shard_size=100_000)
print("ready", flush=True)
sys.stdin.readline()
compress(sys.argv[1], sys.argv[2], recipe, resume="resume" in sys.argv[3:])
"""


def weights(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.glob("model*"))}


def break_at(monkeypatch, module, name, call):
    """Make the `call`-th call of a function raise, as a power cut would."""
    original, count = getattr(module, name), iter(range(10**6))

    def broken(*arguments, **keywords):
        if next(count) == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, broken)


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    compress(tiny_llama, output, RECIPE)
    return weights(output)


@pytest.mark.parametrize(
    "module, name, call",
    [
        (working.WorkingFiles, "write", 1),
        (writer.Writer, "write", 3),
        (writer.Writer, "write", 38),
        (loop, "record", 1),
        (loop, "record", 4),
        (loop, "check_files", 4),
        (writer.os, "replace", 6),
        (writer.os, "replace", 9),
        (writer, "write_json", 0),
        (writer, "remove_unfinished", 0),
    ],
)
def test_interrupted_at_every_kind_of_step(tiny_llama, tmp_path, uninterrupted, monkeypatch, module, name, call):
    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        break_at(patch, module, name, call)
        compress(tiny_llama, output, RECIPE)
    assert (output / ".unfinished").is_dir()
    assert (output / "config.json").exists() == (name == "remove_unfinished")
    report = compress(tiny_llama, output, RECIPE, resume=True)
    assert weights(output) == uninterrupted
    assert len(report.matrices) == 9
    assert not (output / ".unfinished").exists()


def run_and_kill(arguments, seconds):
    """Start the child and kill it `seconds` after it began to compress; None waits. Returns the seconds it ran."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    began = time.monotonic()
    child.stdin.write("go\n")
    child.stdin.flush()
    if seconds is not None:
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    child.communicate()
    return time.monotonic() - began


def finished(output):
    return (output / "config.json").exists() and not (output / ".unfinished").exists()


def kill_and_resume(source, folder, seed, kills):
    """Kill a run `kills` times within the time an uninterrupted child takes, resuming each time; then let it finish."""
    generator, output = random.Random(seed), folder / "out"
    duration = run_and_kill([str(source), str(folder / "timing")], None)
    for last in (*[False] * kills, True):
        resume = (output / ".unfinished").exists()
        if not finished(output):
            seconds = None if last else generator.uniform(0.0, duration)
            run_and_kill([str(source), str(output), *(["resume"] if resume else [])], seconds)
    assert finished(output)
    return output


@pytest.mark.slow
def test_killed_at_random_points(tiny_llama, tmp_path, uninterrupted):
    """Real SIGKILLs of fresh interpreters, one seeded sequence; test_kill.py does many in forked ones."""
    assert weights(kill_and_resume(tiny_llama, tmp_path, 0, 2)) == uninterrupted


@pytest.fixture
def unfinished(tiny_llama, tmp_path, monkeypatch):
    """(source, output) after the first of three layers; both may be changed."""
    source = shutil.copytree(tiny_llama, tmp_path / "in")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        break_at(patch, loop, "record", 5)
        compress(source, tmp_path / "out", with_text(tmp_path))
    return source, tmp_path / "out"


def with_text(folder, **changes):
    calibration = Calibration(text=str(folder / "text.txt"), samples=6, length=48)
    return Recipe(**{"ratio": 0.2, "block": 2, "calibration": calibration, **changes})


def test_a_changed_source_is_refused(unfinished, tmp_path):
    source, output = unfinished
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot resume, the source changed"):
        compress(source, output, with_text(tmp_path), resume=True)


def test_a_changed_recipe_is_refused(unfinished, tmp_path):
    with pytest.raises(CheckpointError, match=r"the recipe changed .* \(recipe\.ratio was 0\.2, is 0\.3\); restore it"):
        compress(*unfinished, with_text(tmp_path, ratio=0.3), resume=True)


def test_a_changed_text_is_refused(unfinished, tmp_path):
    text = (tmp_path / "text.txt").read_text()
    (tmp_path / "text.txt").write_text(text.replace("lazy", "busy"))
    with pytest.raises(CheckpointError, match="calibration text.* changed"):
        compress(*unfinished, with_text(tmp_path), resume=True)


def test_another_version_is_refused(unfinished, tmp_path):
    folder = unfinished[1] / ".unfinished"
    saved = manifest.load(folder)
    saved.identity["format"] = 0
    saved.save(folder)
    with pytest.raises(CheckpointError, match="the format changed since the run began"):
        compress(*unfinished, with_text(tmp_path), resume=True)


def test_a_manifest_that_says_something_else_is_refused(unfinished, tmp_path):
    """Valid JSON of another number: no run goes on from what no run has written."""
    path = unfinished[1] / ".unfinished" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"threads": ', '"threads": 1'))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged \(its checksum is another\)"):
        compress(*unfinished, with_text(tmp_path), resume=True)


@pytest.mark.parametrize(
    "damage, message",
    [("cut", "hidden-00001-0.bin has .* the working files are damaged"), ("manifest", "manifest.json is damaged")],
)
def test_damaged_working_files_are_refused(unfinished, tmp_path, damage, message):
    folder = unfinished[1] / ".unfinished"
    path = next(folder.glob("hidden-00001-*.bin")) if damage == "cut" else folder / "manifest.json"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=message):
        compress(*unfinished, with_text(tmp_path), resume=True)


def test_a_moved_source_may_continue(unfinished, tmp_path):
    source, output = unfinished
    source.rename(tmp_path / "moved")
    compress(tmp_path / "moved", output, with_text(tmp_path), resume=True)
    assert (output / "config.json").exists()


def test_a_full_disk_says_so_and_can_be_resumed(tiny_llama, tmp_path, uninterrupted, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SvdError, match="no space left .* --resume"):
        patch.setattr(writer.os, "fsync", full)
        compress(tiny_llama, tmp_path / "out", RECIPE)
    compress(tiny_llama, tmp_path / "out", RECIPE, overwrite=True)
    assert weights(tmp_path / "out") == uninterrupted


def test_a_disk_that_is_too_small_is_refused_before_work(tiny_llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="needs 0.00 GB .* are free"):
        compress(tiny_llama, tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()
