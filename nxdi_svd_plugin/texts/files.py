"""Text files as they come: UTF-8 with or without a byte order mark, packed or not."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from nxdi_svd_plugin.errors import CalibrationError, MissingExtraError

RECORDS = (".json", ".jsonl", ".ndjson")
GZIP, ZSTANDARD = (".gz",), (".zst", ".zstd")


def holds_records(path: Path) -> bool:
    """Whether the name says that a file holds JSON records; capital letters and a packer's ending aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (*GZIP, *ZSTANDARD)]
    return bool(suffixes) and suffixes[-1] in RECORDS


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A file as text; what goes wrong in the block while it is read is one error.

    Raises:
        CalibrationError: not UTF-8, damaged, unreadable. MissingExtraError: no library that unpacks Zstandard.
    """
    errors: tuple[type[BaseException], ...] = (OSError, EOFError, zlib.error, *_zstandard_errors(path))
    try:
        with _unpacked(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        marked = " but begins like UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise CalibrationError(
            f"text {path} is not UTF-8{marked} (byte 0x{error.object[error.start]:02x}: {error.reason}); convert it to "
            "UTF-8 text or JSON lines"
        ) from error
    except errors as error:
        said = getattr(error, "strerror", None) or str(error)
        raise CalibrationError(f"text {path} cannot be read ({said}); is it damaged?") from error


def _unpacked(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix in GZIP:
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return _zstandard(path) if suffix in ZSTANDARD else open(path, "rb")


def _zstandard(path: Path) -> Any:
    library = _zstandard_library()
    if library is None:
        raise MissingExtraError(f"text {path} is packed by Zstandard; pip install zstandard, or use `zstd -d` first")
    if library.__name__ == "zstandard":  # its own open() stops after the first frame of a file
        return library.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True)
    return library.open(path, "rb")


def _zstandard_library() -> Any:
    """Python 3.14's own module, or the package zstandard; None without either."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _zstandard_errors(path: Path) -> tuple[type[BaseException], ...]:
    library = _zstandard_library() if path.suffix.lower() in ZSTANDARD else None
    return () if library is None else (library.ZstdError,)
