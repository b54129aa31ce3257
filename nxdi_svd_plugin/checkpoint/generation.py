"""generation_config.json: what it must be so that a model can be loaded, and its special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.checkpoint.names import GENERATION, read_json
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.lfs import refuse_pointer

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
LARGEST = 2**63
"""Of a token id, which is an int64 to torch."""


def read_generation(directory: Path) -> dict[str, Any] | None:
    """The object in generation_config.json; None where there is no such file.

    Raises:
        CheckpointError: a pointer, no JSON object, or special tokens that are no token ids.
    """
    path = directory / GENERATION
    if not path.is_file():
        return None
    refuse_pointer(path)
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or remove it: it is optional") from error
    check_special(path, found)
    return found


def check_special(path: Path, found: Mapping[str, Any]) -> None:
    """Raise for special tokens that are no token ids, in a generation_config.json or a config.json.

    Raises:
        CheckpointError: names the key; a list is taken for the end tokens alone.
    """
    for key in SPECIAL:
        value = found.get(key)
        several = key == "eos_token_id" and isinstance(value, list)
        if value is not None and not all(map(_is_id, value if several else [value])):
            what = "a token id, a list of them or null" if key == "eos_token_id" else "a token id or null"
            raise CheckpointError(f"{path} has {key} = {value!r}; expected {what}")


def _is_id(value: Any) -> bool:
    """Whole numbers; negative ones, which older Llama configs have, stand for none."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
