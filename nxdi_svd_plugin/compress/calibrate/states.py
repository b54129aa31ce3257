"""The hidden states between two layers, and the gradients of the loss there, on disk: memory does not grow with the
calibration text, and a killed run goes on.

One raw float32 file per layer boundary and process, read and written one sample at a time. `hidden-i` holds the inputs
of layer i, `gradient-i` the loss gradient there; for a refit, `prefix-i` its inputs behind compressed layers, and
`middle-i` what its MLP is then added to, with what near of down reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch

from nxdi_svd_plugin.checkpoint.working import WorkingFiles
from nxdi_svd_plugin.errors import NotFiniteError


def hidden(layer: int) -> str:
    """Name of the working file with the inputs of a layer."""
    return f"hidden-{layer:05d}"


def gradient(layer: int) -> str:
    """Name of the working file with the loss gradient at the inputs of a layer."""
    return f"gradient-{layer:05d}"


def prefix(layer: int) -> str:
    """Name of the working file with the inputs of a layer behind compressed ones."""
    return f"prefix-{layer:05d}"


def middle(layer: int) -> str:
    """Name of the working file with what a layer behind compressed ones adds the output of its MLP to, and what near of
    down reads."""
    return f"middle-{layer:05d}"


def write_samples(files: WorkingFiles, name: str, samples: Iterable[torch.Tensor]) -> None:
    """Store samples [length, hidden] in float32.

    Raises:
        NotFiniteError: a sample holds NaN or infinity.
    """
    files.write(name, (_bytes(name, sample) for sample in samples))


def _bytes(name: str, sample: torch.Tensor) -> bytes:
    stored = sample.to(device="cpu", dtype=torch.float32).contiguous()
    check_finite(name, stored)
    return stored.numpy().tobytes()


def check_finite(name: str, *tensors: torch.Tensor) -> None:
    """Refuse what the calibration makes of a model whose numbers are too large for float32.

    Args:
        name: of the working file, its kind and the layer.
    Raises:
        NotFiniteError: a tensor holds NaN or infinity.
    """
    if any(tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all() for tensor in tensors):
        kind, _, layer = name.partition("-")
        raise NotFiniteError(
            f"the calibration text gives NaN or infinite values in float32 ({kind} at layer {int(layer)}): weights of "
            "the model are damaged or too large; see what `nxdi-svd evaluate` says of it"
        )


def read_samples(
    files: WorkingFiles, name: str, shape: tuple[int, int], start: int = 0, step: int = 1
) -> Iterator[torch.Tensor]:
    """The samples of a file, one of `shape` (length, hidden) at a time: from number `start` on every `step`-th."""
    size = 4 * shape[0] * shape[1]
    with open(files.path(name), "rb") as file:
        file.seek(start * size)
        while content := file.read(size):
            yield torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(shape)
            file.seek((step - 1) * size, os.SEEK_CUR)
