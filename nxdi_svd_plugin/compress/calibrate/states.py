"""The hidden states between two layers, on disk: memory does not grow with the calibration text, and a killed run goes
on.

One raw float32 file per layer boundary and process, read and written one sample at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from nxdi_svd_plugin.checkpoint.atomic import disk_errors


class HiddenStates:
    """The files `hidden-<layer>-<rank>.bin` of one process; file i holds the inputs of layer i.

    Args:
        folder: the working directory of the output.
        rank: of this process.
        shape: (length, hidden) of a sample.
    """

    def __init__(self, folder: Path, rank: int, shape: tuple[int, int]) -> None:
        self._folder, self._rank, self._shape = folder, rank, shape

    def path(self, layer: int) -> Path:
        """Where the inputs of `layer` are."""
        return self._folder / f"hidden-{layer:05d}-{self._rank}.bin"

    def write(self, layer: int, samples: Iterable[torch.Tensor]) -> str:
        """Store the inputs of `layer`; the file appears only when it is complete. Returns its sha256."""
        digest, temporary = hashlib.sha256(), self.path(layer).with_suffix(".tmp")
        with disk_errors(temporary):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                for sample in samples:
                    content = sample.to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes()
                    digest.update(content)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(layer))
        return digest.hexdigest()

    def read(self, layer: int) -> Iterator[torch.Tensor]:
        """The inputs of `layer`, one sample [length, hidden] at a time."""
        size = 4 * self._shape[0] * self._shape[1]
        with open(self.path(layer), "rb") as file:
            while content := file.read(size):
                yield torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(self._shape)

    def discard(self, layer: int) -> None:
        """Delete the inputs of `layer` if they are there."""
        self.path(layer).unlink(missing_ok=True)
