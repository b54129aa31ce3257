"""Streaming access to a dense source directory: one tensor at a time, nothing kept mapped, and all checks before long
work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nxdi_svd_plugin.checkpoint.layout import CODES
from nxdi_svd_plugin.checkpoint.names import EMBEDDING, HEAD, INDEX, ROTARY_BUFFER, SINGLE_FILE, read_json
from nxdi_svd_plugin.checkpoint.source import SourceConfig, check_buildable
from nxdi_svd_plugin.checkpoint.tensors import expected_tensors
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.stored.dtypes import DTYPES

TYPES = {CODES[getattr(torch, name)]: getattr(torch, name) for name in DTYPES}
CHUNK = 1 << 23


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored and what it is."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Reader:
    """The safetensors of a directory. Every file is opened for one tensor and closed again, so no mapping stays in
    memory.

    tensors: file, dtype and shape of each tensor by name.

    Args:
        doubles: float64 is taken too: a model that was saved so runs, but is not compressed.
    Raises:
        CheckpointError: no safetensors, a pickle checkpoint, a damaged file or index, a path outside the directory.
    """

    def __init__(self, directory: Path, doubles: bool = False) -> None:
        self.directory, self._types = directory, TYPES | ({"F64": torch.float64} if doubles else {})
        self.files, index = _files(directory)
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            self._read_header(file)
        if index is not None:
            _check_index(directory, index, self.tensors)

    def _read_header(self, file: str) -> None:
        with _open(self.directory / file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                piece = opened.get_slice(name)
                if piece.get_dtype() not in self._types:
                    raise CheckpointError(
                        f"{self.directory / file}: {name} is stored as {piece.get_dtype()}; expected float32, "
                        "bfloat16 or float16 (quantized checkpoints are not supported)"
                    )
                if name in self.tensors:
                    raise CheckpointError(f"{name} is stored twice, in {self.tensors[name].file} and {file}")
                self.tensors[name] = TensorInfo(file, self._types[piece.get_dtype()], tuple(piece.get_shape()))

    def get(self, name: str) -> torch.Tensor:
        """A copy of one tensor as it is stored."""
        with _open(self.directory / self.tensors[name].file) as opened:
            tensor: torch.Tensor = opened.get_tensor(name).clone()
        return tensor

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a matrix, without the rest of it in memory."""
        with _open(self.directory / self.tensors[name].file) as opened:
            rows: torch.Tensor = opened.get_tensor(name)[indices]
        return rows

    def check_tensors(self, config: SourceConfig) -> None:
        """Compare names and shapes with what the config's architecture has.

        Raises:
            CheckpointError: a missing, unexpected or wrongly shaped tensor, a head that is not what the config says,
                or a config that transformers cannot build.
        """
        check_buildable(config)
        self.check_head(config.raw)
        expected = expected_tensors(config)
        missing = [name for name in expected if name not in self.tensors]
        extra = [n for n in self.tensors if n not in expected and n != HEAD and not ROTARY_BUFFER.fullmatch(n)]
        if missing or extra:
            raise CheckpointError(
                f"{self.directory}: the tensors do not fit its config.json: {_some(missing, 'missing')}"
                f"{_some(extra, 'unexpected')}restore the files or the config"
            )
        for name, shape in expected.items():
            if self.tensors[name].shape != shape:
                raise CheckpointError(
                    f"{self.directory}: {name} has shape {list(self.tensors[name].shape)}; "
                    f"config.json says {list(shape)}"
                )

    def check_head(self, raw: Mapping[str, Any]) -> None:
        """Refuse a head that is stored beside embeddings that it is said to be: transformers would read only these.

        Args:
            raw: config.json.
        Raises:
            CheckpointError: they differ.
        """
        if not raw.get("tie_word_embeddings") or not {HEAD, EMBEDDING} <= set(self.tensors):
            return
        first, second = (self.tensors[name] for name in (HEAD, EMBEDDING))
        if (first.dtype, first.shape) == (second.dtype, second.shape):
            with _open(self.directory / first.file) as a, _open(self.directory / second.file) as b:
                if torch.equal(a.get_tensor(HEAD), b.get_tensor(EMBEDDING)):
                    return
        raise CheckpointError(
            f"{self.directory}: config.json says that the output head is the embeddings (tie_word_embeddings), and "
            f"{HEAD} is stored and differs from them; set it to false, or remove the tensor"
        )

    def finite_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, with its name.

        Raises:
            CheckpointError: a NaN or an infinity.
        """
        for name, info in self.tensors.items():
            tensor = self.get(name)
            if tensor.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
                raise CheckpointError(
                    f"{self.directory / info.file}: {name} holds NaN or infinite values; download the file again"
                )
            yield name, tensor

    def fingerprint(self) -> str:
        """sha256 over the hashes of config.json and every weight file: changes when the source does."""
        digest = hashlib.sha256()
        for file in ("config.json", *self.files):
            digest.update(f"{file} {file_sha256(self.directory / file)}\n".encode())
        return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _open(path: Path) -> safe_open:
    try:
        refuse_pointer(path)
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it is missing or truncated") from error


def _files(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    """The weight files, and the index's map from tensor to file when there is one."""
    for name in (SINGLE_FILE, INDEX):
        refuse_pointer(directory / name)
    if (directory / INDEX).is_file():
        index = _load_index(directory / INDEX)
        for file in index.values():
            if Path(file).name != file or file in ("", ".."):
                raise CheckpointError(f"{directory / INDEX} names {file!r}, which is outside the model directory")
        if (directory / SINGLE_FILE).is_file() and SINGLE_FILE not in index.values():
            raise CheckpointError(
                f"{directory} holds two sets of weights, {SINGLE_FILE} and the shards of {INDEX}; transformers reads "
                "the first. Remove one of them"
            )
        return sorted(set(index.values())), index
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE], None
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    raise CheckpointError(
        f"{directory} has no {SINGLE_FILE} and no {INDEX}; "
        + (
            f"{pickles[0]} is a pickle, which can run code when it is read: convert it to safetensors first"
            if pickles
            else "give a complete Hugging Face model directory"
        )
    )


def _load_index(path: Path) -> dict[str, str]:
    try:
        index = read_json(path)["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a safetensors index ({error!r}); restore it from the source") from error
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{path}: weight_map must map tensor names to file names")
    return index


def _check_index(directory: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, file in index.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"{directory / INDEX} says {name} is in {file}; it is not there: restore the index")


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "
