"""The hidden states between two layers, and the gradients of the loss there, on disk: memory does not grow with the
calibration text, and a killed run goes on.

One raw float32 file per layer boundary and process, read and written one sample at a time. `hidden-i` holds the inputs
of layer i, `gradient-i` the loss gradient there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from nxdi_svd_plugin.checkpoint.working import WorkingFiles


def hidden(layer: int) -> str:
    """Name of the working file with the inputs of a layer."""
    return f"hidden-{layer:05d}"


def gradient(layer: int) -> str:
    """Name of the working file with the loss gradient at the inputs of a layer."""
    return f"gradient-{layer:05d}"


def write_samples(files: WorkingFiles, name: str, samples: Iterable[torch.Tensor]) -> None:
    """Store samples [length, hidden] in float32."""
    files.write(name, (s.to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes() for s in samples))


def read_samples(files: WorkingFiles, name: str, shape: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The samples of a file, one of `shape` (length, hidden) at a time."""
    size = 4 * shape[0] * shape[1]
    with open(files.path(name), "rb") as file:
        while content := file.read(size):
            yield torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(shape)
