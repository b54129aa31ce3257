"""One process at a time in an output directory: a lock of the operating system's, which dies with its owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from nxdi_svd_plugin.checkpoint.atomic import disk_errors
from nxdi_svd_plugin.errors import CheckpointError

LOCK = ".lock"
"""In the output while a process writes there; whatever a killed one left of it locks nothing."""


class OutputLock:
    """An exclusive flock on `output/.lock`; a context manager, too.

    The file goes with the lock, so what is locked is always what is there.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._path, self._handle, self._made = output, output / LOCK, -1, False

    def acquire(self) -> None:
        """Take the lock; makes the directory.

        Raises:
            CheckpointError: another process has it, or the directory cannot be written.
        """
        with disk_errors(self._path):
            self._made = not self._output.exists()
            self._output.mkdir(parents=True, exist_ok=True)
            while self._handle < 0:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._take(handle, fcntl.LOCK_EX)
                if self._is_there(handle):
                    self._handle = handle
                else:  # its last owner removed the file between open and lock
                    os.close(handle)

    def check(self) -> None:
        """Refuse an output that another process writes to; writes nothing.

        Raises:
            CheckpointError: another process has the lock.
        """
        if self._path.exists():
            with disk_errors(self._path):
                handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self._take(handle, fcntl.LOCK_SH)
                os.close(handle)

    def _take(self, handle: int, kind: int) -> None:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise CheckpointError(
                f"another process is writing to {self._output}; wait until it ends, or give another directory"
            ) from None

    def _is_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> OutputLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back; a directory that was made for it and is empty goes too."""
        if self._handle < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = -1
        if self._made and not any(self._output.iterdir()):
            self._output.rmdir()
