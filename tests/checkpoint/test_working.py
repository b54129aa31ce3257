"""Working files: whole or not there, recorded with size and hash, every kind of fault named."""

import hashlib
import os
import re

import pytest
import torch

from nxdi_svd_plugin.checkpoint.working import WorkingFiles
from nxdi_svd_plugin.errors import CheckpointError


@pytest.fixture
def files(tmp_path):
    """One recorded file, `a`, of process 3."""
    made = WorkingFiles(tmp_path / "work", rank=3)
    made.write("a", [b"one", b"", b"two"])
    made.recorded |= made.take_written()
    return made


def test_what_is_recorded_is_what_is_there(files):
    content = files.path("a").read_bytes()
    assert content == b"onetwo" and files.path("a").name == "a-3.bin"
    assert files.recorded == {"a-3.bin": {"size": 6, "sha256": hashlib.sha256(content).hexdigest()}}
    assert files.take_written() == {} and files.faults(["a"]) == []
    assert [p.name for p in files.folder.iterdir()] == ["a-3.bin"]


def test_tensors_come_back_bit_by_bit(files):
    given = {"x": torch.randn(3, 5, dtype=torch.float64), "y": torch.arange(4.0)[:, None].T}
    given["z"] = torch.tensor([torch.nan])
    files.write_tensors("t", given)
    found = files.read_tensors("t")
    assert set(found) == set(given)
    assert all(torch.equal(found[n].nan_to_num(7), given[n].nan_to_num(7)) for n in ("x", "z"))
    assert torch.equal(found["y"], given["y"])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 5), "has 5 bytes, 6 were written"),
        (lambda path: os.truncate(path, 0), "has 0 bytes"),
        (lambda path: path.write_bytes(b"onetwO"), r"\(sha256 differs\)"),
    ],
)
def test_every_fault_has_its_words(files, damage, fault):
    damage(files.path("a"))
    (said,) = files.faults(["a"])
    assert str(files.path("a")) in said
    assert re.search(fault, said)


def test_a_file_that_no_step_recorded_is_not_read(files):
    files.write("b", [b"x"])
    assert "was never recorded" in files.faults(["b"])[0]


def test_a_write_that_fails_leaves_the_old_file(files):
    def broken():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="no space left"):
        files.write("a", broken())
    assert files.path("a").read_bytes() == b"onetwo" and files.take_written() == {}


def test_what_is_dropped_is_gone_and_may_be_gone_already(files):
    files.drop("a")
    files.drop("a")
    assert not files.path("a").exists()
