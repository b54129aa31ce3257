"""The lock of an output, with real processes: refused at once while its owner lives, free when it was killed."""

import os
import signal
import subprocess
import sys

import pytest

from nxdi_svd_plugin.checkpoint.lock import LOCK, OutputLock
from nxdi_svd_plugin.errors import CheckpointError

HOLDER = """
import sys, time
from pathlib import Path
from nxdi_svd_plugin.checkpoint.lock import OutputLock
lock = OutputLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
"""


@pytest.fixture
def held(tmp_path):
    """(directory, process that holds its lock)."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield tmp_path / "out", child
    child.kill()
    child.wait()


def test_the_second_process_is_refused(held):
    directory, child = held
    with pytest.raises(CheckpointError, match=f"another process is writing to {directory}; wait until it ends"):
        OutputLock(directory).acquire()
    with pytest.raises(CheckpointError, match="another process is writing to"):
        OutputLock(directory).check()
    assert (directory / LOCK).exists()
    child.communicate("go\n")
    OutputLock(directory).check()
    assert not directory.exists()  # made for the lock, and a check makes nothing
    OutputLock(directory).acquire()


def test_a_killed_owner_holds_nothing(held):
    directory, child = held
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (directory / LOCK).exists()  # what it left
    lock = OutputLock(directory)
    lock.acquire()
    lock.release()
    assert not (directory / LOCK).exists()


def test_a_file_that_its_owner_removed_is_not_the_lock(tmp_path, monkeypatch):
    """Opened before the release, locked after it: the file is gone, and another may have made a new one."""
    first, second, opened = OutputLock(tmp_path), OutputLock(tmp_path), os.open
    first.acquire()

    def late(*arguments):
        handle = opened(*arguments)
        monkeypatch.setattr(os, "open", opened)
        first.release()
        return handle

    monkeypatch.setattr(os, "open", late)
    second.acquire()
    with pytest.raises(CheckpointError, match="another process"):
        OutputLock(tmp_path).acquire()
    second.release()


def test_a_directory_made_for_the_lock_goes_with_it(tmp_path):
    lock = OutputLock(tmp_path / "new")
    lock.acquire()
    lock.release()
    lock.release()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    lock = OutputLock(tmp_path / "old")
    lock.acquire()
    lock.release()
    assert (tmp_path / "old").is_dir()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        OutputLock(tmp_path / "file" / "out").acquire()
