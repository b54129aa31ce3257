"""Writing a compressed directory so that it is complete or recognisably unfinished.

While it is written, everything is in `OUTPUT/.unfinished/`: the shards at their full size (so a full disk shows at
once), which are filled tensor by tensor at fixed offsets, and the manifest of finished steps. At the end the shards are
renamed into place, then the small files, `config.json` last; a directory without `config.json` is no model to any
reader.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.atomic import disk_errors, sync_directory, write_bytes, write_json
from nxdi_svd_plugin.checkpoint.layout import Entries, Shard, index_json, plan_shards, raw_bytes
from nxdi_svd_plugin.checkpoint.lock import LOCK
from nxdi_svd_plugin.checkpoint.names import CONFIG, INDEX, UNFINISHED, read_json
from nxdi_svd_plugin.checkpoint.reader import CHUNK
from nxdi_svd_plugin.errors import CheckpointError

REMOVED = ".removed"
"""The working directory gets this name in the moment the output is complete, and is then deleted."""
MANIFEST = "manifest.json"
"""In the working directory: what a resumed run needs."""


def check_output(output: Path, source: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output directory that cannot be used; writes nothing.

    Raises:
        CheckpointError: it is the source or inside it, holds something and neither flag is given, has nothing to
            resume, or cannot be written.
    """
    if resume and overwrite:
        raise CheckpointError("--resume and --overwrite contradict each other; give one of them")
    inside, origin = output.resolve(), source.resolve()
    if inside == origin or origin in inside.parents or inside in origin.parents:
        raise CheckpointError(
            f"output {output} and source {source} must be separate directories: the source is never touched"
        )
    unfinished = output / UNFINISHED
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"output {output} is a file; give a directory")
    if output.is_symlink() and not output.exists():
        raise CheckpointError(
            f"output {output} is a link to a directory that is not there; make it, or remove the link"
        )
    if resume and not unfinished.is_dir() and content(output):
        raise CheckpointError(f"{output} has no unfinished compression to resume but other files; run without it")
    if content(output) and not resume:
        if not overwrite:
            raise CheckpointError(f"output {output} {_occupied(output)}")
        if not _replaceable(output):
            raise CheckpointError(
                f"output {output} holds no compressed model, and --overwrite deletes nothing else; "
                "give another directory"
            )
    existing = output
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        raise CheckpointError(
            f"cannot write output {output}: {existing} is not a writable directory; choose another place"
        )


def content(output: Path) -> list[Path]:
    """What an output holds, its lock aside; nothing if it does not exist."""
    return [path for path in output.iterdir() if path.name != LOCK] if output.is_dir() else []


def _occupied(output: Path) -> str:
    """What an output that is not empty holds, and what to do."""
    if (output / UNFINISHED).is_dir():
        return "holds an unfinished compression; add --resume to continue it or --overwrite to begin again"
    if _replaceable(output):
        return "holds a compressed model already; add --overwrite to replace it, or give another directory"
    return "holds files already; give another directory"


def _replaceable(output: Path) -> bool:
    """Whether --overwrite may delete what an output holds: a compressed model, finished or not."""
    if (output / UNFINISHED).is_dir():
        return True
    try:
        return "svd_config" in read_json(output / CONFIG)
    except (OSError, ValueError):
        return False


def prepare_output(output: Path, source: Path, *, resume: bool, overwrite: bool) -> None:
    """`check_output`, then make the directory, emptied with `overwrite`."""
    check_output(output, source, resume=resume, overwrite=overwrite)
    if overwrite and output.is_dir():
        _remove_output(output)
    unfinished = output / UNFINISHED
    with disk_errors(output):
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished / "probe").write_bytes(b"")
        (unfinished / "probe").unlink()


def _remove_output(output: Path) -> None:
    """Empty an output that holds a model or an unfinished one.

    In an order that can be interrupted: it is marked unfinished first, then loses what would let a run resume or a
    reader load it, and only then the rest.
    """
    unfinished = output / UNFINISHED
    with disk_errors(output):
        unfinished.mkdir(exist_ok=True)
        (unfinished / MANIFEST).unlink(missing_ok=True)
        (output / CONFIG).unlink(missing_ok=True)
        for path in (*(p for p in content(output) if p != unfinished), *unfinished.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class Writer:
    """The shards of one output, filled in any order.

    Args:
        output: a directory from `prepare_output`.
        entries: name, dtype and shape of every tensor of the output, in file order.
        shard_size: largest file in bytes.
        reopened: the shards hold tensors already, so they must be there.
    Raises:
        CheckpointError: no space for the shards, or one that is not there any more.
    """

    def __init__(self, output: Path, entries: Entries, shard_size: int, *, reopened: bool = False) -> None:
        self.output, self.entries = output, entries
        self.shards = plan_shards(entries, shard_size)
        self._where = {name: (shard, start) for shard in self.shards for name, start in shard.offsets.items()}
        for shard in self.shards:
            self._allocate(output / UNFINISHED / shard.name, shard.header, shard.size, reopened)

    def _allocate(self, path: Path, header: bytes, size: int, reopened: bool) -> None:
        with disk_errors(path):
            if not path.exists() and (self.output / path.name).exists():  # killed while it finished
                os.replace(self.output / path.name, path)
            found = path.stat().st_size if path.exists() else 0
            if reopened and found != size:
                raise CheckpointError(f"{path} has {found} bytes, {size} were written; start again with --overwrite")
            self._reserve(path, header, size)

    def _reserve(self, path: Path, header: bytes, size: int) -> None:
        with open(path, "r+b" if path.exists() else "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            file.write(header)

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Put one tensor at its place, and return the SHA-256 of its bytes.

        Raises:
            CheckpointError: another dtype or shape than announced, values that are not finite, a disk error.
        """
        dtype, shape = self.entries[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} is {tensor.dtype} {list(tensor.shape)}; planned was {dtype} {list(shape)}")
        if tensor.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
            raise CheckpointError(f"{name} is not finite in {dtype}; use a wider dtype for the factors")
        shard, start = self._where[name]
        data = raw_bytes(tensor)
        path = self.output / UNFINISHED / shard.name
        with disk_errors(path), open(path, "r+b") as file:
            file.seek(start)
            file.write(data)
        return hashlib.sha256(data).hexdigest()

    def hashes(self, tensors: Mapping[str, str]) -> dict[str, str]:
        """SHA-256 of every shard, in the working directory still, after its content was compared with what was written.

        Args:
            tensors: name to the SHA-256 that `write` returned.
        Raises:
            CheckpointError: a shard that does not hold all of them as they were written.
        """
        return {shard.name: self._hash(shard, tensors) for shard in self.shards}

    def _hash(self, shard: Shard, tensors: Mapping[str, str]) -> str:
        path = self.output / UNFINISHED / shard.name
        bounds = [*sorted(shard.offsets.items(), key=lambda item: item[1]), ("", shard.size)]
        whole, wrong = hashlib.sha256(), ""
        with disk_errors(path), open(path, "rb") as file:
            head = file.read(len(shard.header))
            whole.update(head)
            for (name, start), (_, stop) in zip(bounds, bounds[1:], strict=False):
                part = hashlib.sha256()
                for size in pieces(stop - start):
                    data = file.read(size)
                    part.update(data)
                    whole.update(data)
                wrong = wrong or (name if part.hexdigest() != tensors.get(name) else "")
            if wrong or head != shard.header or file.read(1):
                raise CheckpointError(
                    f"{path} does not hold what was written ({wrong or 'header'} differs); start again with --overwrite"
                )
        return whole.hexdigest()

    def sync(self, names: Iterable[str]) -> None:
        """Put the shards that hold these tensors on the disk."""
        for file in {self._where[name][0].name for name in names}:
            path = self.output / UNFINISHED / file
            with disk_errors(path), open(path, "r+b") as opened:
                os.fsync(opened.fileno())

    def finish(self, carried: dict[str, bytes], config: dict[str, Any]) -> None:
        """Move the shards into place, write the small files, `config.json` last, and remove what marked it
        unfinished."""
        with disk_errors(self.output):
            for shard in self.shards:
                os.replace(self.output / UNFINISHED / shard.name, self.output / shard.name)
            sync_directory(self.output)
        index = index_json(self.shards, self.entries)
        if index is not None:
            write_json(self.output / INDEX, index)
        for name, content in carried.items():
            write_bytes(self.output / name, content)
        write_json(self.output / CONFIG, config)
        remove_unfinished(self.output)


def pieces(size: int) -> Iterator[int]:
    """`size` in parts of at most CHUNK."""
    for start in range(0, size, CHUNK):
        yield min(CHUNK, size - start)


def remove_unfinished(output: Path) -> None:
    """Delete the working files of a finished output: in one moment it is no longer unfinished."""
    with disk_errors(output):
        shutil.rmtree(output / REMOVED, ignore_errors=True)
        if (output / UNFINISHED).exists():
            os.replace(output / UNFINISHED, output / REMOVED)
            sync_directory(output)
        shutil.rmtree(output / REMOVED, ignore_errors=True)
