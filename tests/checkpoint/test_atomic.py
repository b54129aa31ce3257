"""Files appear whole or not at all, and a full disk is one clear sentence."""

import json
import os

import pytest

from nxdi_svd_plugin.checkpoint.atomic import disk_errors, write_bytes, write_json
from nxdi_svd_plugin.errors import CheckpointError


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_old_file_stays_when_the_new_one_cannot_be_finished(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*/a \(Input/output error\)"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full, on Linux only")
def test_a_full_disk_says_what_to_do(tmp_path):
    """A real ENOSPC from the kernel."""
    with (
        pytest.raises(CheckpointError, match="no space left for .*free some space and run again with --resume"),
        disk_errors(tmp_path / "a"),
        open("/dev/full", "wb") as file,
    ):
        file.write(b"x" * 10**6)


def test_a_missing_directory_is_no_full_disk(tmp_path):
    with pytest.raises(CheckpointError, match="check the path and its permissions"):
        write_bytes(tmp_path / "no" / "a", b"")


def test_a_bug_is_not_taken_for_a_disk_error(tmp_path):
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError
