"""Every working file of every kind of recipe, damaged in every way: one sentence and exit code 1, or made again; the
result is never different. Two processes in one output: the second is refused, the first is not disturbed."""

import os
import shutil
import subprocess
import sys

import pytest

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.run import run as loop

FLAGS = ["--block", "4", "--ratio", "0.2", "--samples", "3", "--length", "24", "--quiet"]
KINDS = {
    "paper": ["--recipe", "paper"],
    "default": ["--tp-degree", "2"],
    "pair two-sided uniform": "--form pair --allocation uniform --dense 1.up_proj --tp-degree 3".split(),
    "interpolative input": ["--objective", "input", "--allocation", "uniform"],
    "drop": ["--drop", "--block", "2"],
}
STOPS = {
    "paper": ("forward 1", "spectra 1", "factor 1", "factor 2"),
    "default": ("head", "backward 1", "spectra 1", "ranks", "factor 1", "factor 2"),
    "pair two-sided uniform": ("backward 2", "spectra 0", "factor 2"),
    "interpolative input": ("forward 1", "spectra 2", "factor 2"),
    "drop": ("spectra 1", "factor 1"),
}
"""Steps after which a run is stopped; together they leave every kind of working file that a later step reads."""


def stop_after(monkeypatch, name):
    original = loop.record

    def stopping(run, step):
        original(run, step)
        if step.name == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "record", stopping)


def tensors(directory):
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module", params=KINDS)
def stopped(request, tiny_llama, tmp_path_factory):
    """(arguments, bytes of the whole run, outputs that were stopped after each step of STOPS)."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 3)
    command = ["compress", "--model", str(tiny_llama), "--calibration", str(folder / "text.txt")]
    command += [*FLAGS, *KINDS[request.param], "--output"]
    assert main([*command, str(folder / "whole")]) == 0
    found = []
    for name in STOPS[request.param]:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, name)
            assert main([*command, str(folder / name)]) == 130
        found.append(folder / name)
    return command, tensors(folder / "whole"), found


def test_what_was_stopped_and_not_damaged_ends_in_the_same_bytes(stopped, tmp_path):
    command, expected, outputs = stopped
    for output in outputs:
        again = shutil.copytree(output, tmp_path / output.name)
        assert main([*command, str(again), "--resume"]) == 0
        assert tensors(again) == expected, output.name
        assert not {".unfinished", ".lock"} & {path.name for path in again.iterdir()}


def other_of(path, files):
    """Another file of the same size and kind, with another content; None if there is none."""
    for other in files:
        alike = other != path and other.suffix == path.suffix and other.stat().st_size == path.stat().st_size
        if alike and other.read_bytes() != path.read_bytes():
            return other
    return None


def damages(path, files):
    """(name, what does it) for one file."""
    yield "truncated by one byte", lambda at: os.truncate(at, at.stat().st_size - 1)
    yield "emptied", lambda at: os.truncate(at, 0)
    yield "removed", lambda at: at.unlink()
    yield "one bit flipped", flip
    if other := other_of(path, files):
        yield "swapped", lambda at: shutil.copyfile(at.with_name(other.name), at)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1 - len(content) // 3] ^= 1
    path.write_bytes(content)


def test_every_working_file_in_every_way(stopped, tmp_path, capsys):
    command, expected, outputs = stopped
    kinds, refused = set(), 0
    for output in outputs:
        files = sorted(p for p in (output / ".unfinished").iterdir() if p.suffix != ".tmp")
        for path in files:
            kinds.add(path.name.split("-")[0])
            for name, damage in damages(path, files):
                again = shutil.copytree(output, tmp_path / "again")
                damage(again / ".unfinished" / path.name)
                capsys.readouterr()
                code, said = main([*command, str(again), "--resume"]), capsys.readouterr().err
                where = f"{output.name}: {path.name} {name}: {said}"
                if code == 1:
                    refused += 1
                    assert said.count("\n") == 1 and said.startswith("nxdi-svd compress: error: "), where
                    assert not (again / "config.json").exists(), where
                else:
                    assert code == 0 and tensors(again) == expected, where
                shutil.rmtree(again)
    assert {"manifest.json", "model.safetensors"} <= kinds and refused >= 3 * len(outputs)


def test_the_stops_leave_every_kind_of_file(tmp_path_factory):
    """All names that the steps give to working files were seen by the walk above, over all kinds of recipes."""
    left = {p.name.split("-")[0] for p in tmp_path_factory.getbasetemp().glob("damage*/*/.unfinished/*-0.bin")}
    assert left == {"hidden", "gradient", "statistics", "spectra", "energies", "order", "neurons", "dropping", "prefix"}


SLOW = """
import sys, time
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.run import run as loop

def waiting(run, step, original=loop.WORK["forward"]):
    if step.layers == (1,):
        print("working", flush=True)
        sys.stdin.readline()
    return original(run, step)

loop.WORK["forward"] = waiting
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("stopped", ["default"], indirect=True)
@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"], ["--dry-run"]])
def test_a_second_process_is_refused_at_once(stopped, flags, tmp_path, capsys):
    command, expected, _ = stopped
    arguments = [*command, str(tmp_path / "out")]
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "working\n"
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert main([*arguments, *flags]) == 1
    assert "another process is writing to" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == files
    first.communicate("go\n")
    assert first.returncode == 0 and tensors(tmp_path / "out") == expected
