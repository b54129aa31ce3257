"""Files that appear whole or not at all, and disk errors said in one sentence."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError, NotFiniteError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, fsync, rename, fsync of the directory."""
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Indented JSON as the bytes of a file."""
    return (json_text(value) + "\n").encode()


def json_text(value: Any, indent: int | None = 2) -> str:
    """JSON without NaN and infinity, which are no JSON and no result.

    Raises:
        NotFiniteError: names the place of the first one.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise NotFiniteError(f"the result has {_not_finite(value)}; nothing is reported or written") from error


def _not_finite(value: Any, where: str = "") -> str:
    """'key = nan' of the first number that is not finite, '' if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{where} = {value}"
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = (_not_finite(part, f"{where}.{key}" if where else str(key)) for key, part in parts)
    return next((text for text in found if text), "")


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError into CheckpointError.

    Raises:
        CheckpointError: a full disk, a directory that cannot be written, any other error of the file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(
                f"no space left for {path} ({error.strerror}); free some space and run again with --resume"
            ) from error
        raise CheckpointError(f"cannot write {path} ({error.strerror}); check the path and its permissions") from error
