"""The working files of an unfinished output: written whole, recorded with size and hash, checked before they are read.

Every process of a run has its own files, `<name>-<rank>.bin`. What was written is recorded in the manifest by whoever
runs the step; a file that is not what was recorded is never read.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from nxdi_svd_plugin.checkpoint.atomic import disk_errors, sync_directory
from nxdi_svd_plugin.checkpoint.layout import CODES, head, raw_bytes
from nxdi_svd_plugin.checkpoint.reader import file_sha256

Recorded = dict[str, dict[str, Any]]
"""File name -> {"size": bytes, "sha256": hex}."""


@dataclass
class WorkingFiles:
    """The working files of one process.

    folder: the working directory of the output. rank: of the process. recorded: what the manifest knows of the files of
    all processes. written: what this process has written since `take_written`.
    """

    folder: Path
    rank: int = 0
    recorded: Recorded = field(default_factory=dict)
    written: Recorded = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where a working file of this process is."""
        return self.folder / f"{name}-{self.rank}.bin"

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file atomically, piece by piece, and note its size and hash.

        Raises:
            CheckpointError: a full disk or another error of the file system.
        """
        path, digest, size = self.path(name), hashlib.sha256(), 0
        temporary = path.with_suffix(".tmp")
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(self.folder)
        self.written[path.name] = {"size": size, "sha256": digest.hexdigest()}

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """`write` of named tensors as safetensors, one of them copied at a time."""
        header, position = {}, 0
        for key, tensor in tensors.items():
            end = position + tensor.numel() * tensor.element_size()
            header[key] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
        self.write(name, itertools.chain([head(header)], map(raw_bytes, tensors.values())))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """What `write_tensors` wrote."""
        found: dict[str, Tensor] = load_file(self.path(name))
        return found

    def take_written(self) -> Recorded:
        """What was written since the last call, for the manifest."""
        taken, self.written = self.written, {}
        return taken

    def faults(self, names: Iterable[str]) -> list[str]:
        """One phrase for every file of this process that is not what was recorded."""
        return [fault for name in names if (fault := self._fault(self.path(name)))]

    def _fault(self, path: Path) -> str:
        known = self.recorded.get(path.name)
        if known is None:
            return f"{path} was never recorded"
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != known["size"]:
            return f"{path} has {size} bytes, {known['size']} were written"
        return "" if file_sha256(path) == known["sha256"] else f"{path} does not hold what was written (sha256 differs)"

    def drop(self, name: str) -> None:
        """Delete a file that nothing reads any more."""
        self.path(name).unlink(missing_ok=True)
