"""The files that go to the compressed directory beside weights and config: tokenizer, generation config, template and
licence."""

from __future__ import annotations

import re
from pathlib import Path

from nxdi_svd_plugin.checkpoint.atomic import json_bytes
from nxdi_svd_plugin.checkpoint.generation import read_generation
from nxdi_svd_plugin.checkpoint.names import OTHER_FILES, TOKENIZER_CONFIG, TOKENIZER_FILES, read_json
from nxdi_svd_plugin.checkpoint.spellings import tokenizer_config_for_both
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.lfs import refuse_pointer

TERMS = re.compile(r"(licen[cs]e|notice|copying|use_policy)\b", re.IGNORECASE)
"""Names of the files in which a model says on what terms it may be passed on."""


def carried(directory: Path) -> dict[str, bytes]:
    """Name and content of each: as they are, but for a tokenizer_config.json that transformers 4 could not read or that
    names code.

    Raises:
        CheckpointError: one that cannot be read, that is a Git LFS pointer, or a generation_config.json that no reader
            takes.
    """
    read_generation(directory)
    return {name: _content(directory / name) for name in carried_files(directory)}


def _content(path: Path) -> bytes:
    refuse_pointer(path)
    try:
        content = path.read_bytes()
        found = read_json(path) if path.name == TOKENIZER_CONFIG else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from the model") from error
    if found is None:
        return content
    readable = tokenizer_config_for_both(found)
    return content if readable == found else json_bytes(readable)


def carried_files(directory: Path) -> list[str]:
    """Files that go to the compressed directory: tokenizer, generation config, chat template, licence and notices,
    nothing else.

    transformers writes the whole GGUF as `tokenizer.model` when it saves a tokenizer read from one; that is left
    behind.
    """
    found = [name for name in (*TOKENIZER_FILES, *OTHER_FILES) if (directory / name).is_file()]
    if "tokenizer.model" in found and not is_sentencepiece(directory / "tokenizer.model"):
        found.remove("tokenizer.model")
    terms = (path.name for path in directory.iterdir() if TERMS.match(path.name) and path.is_file())
    return [*found, *sorted(terms)]


def is_sentencepiece(path: Path) -> bool:
    """Whether a file starts like a sentencepiece model: protobuf field 1 (a piece) that holds field 1 (its text).

    Raises:
        CheckpointError: a Git LFS pointer.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        head = file.read(3)
    return len(head) == 3 and head[0] == 0x0A and head[2] == 0x0A
