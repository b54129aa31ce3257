"""The tokenizer of a model directory, by whichever transformers it was saved; nothing that it brings is run."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import NoneType
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nxdi_svd_plugin.checkpoint.names import TOKENIZER_CONFIG, TOKENIZER_FILES, read_json
from nxdi_svd_plugin.checkpoint.source import check_values, read_raw
from nxdi_svd_plugin.checkpoint.spellings import GENERIC, tokenizer_config_for_both
from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.modeling.load import transformers_errors_only

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""What transformers reads a tokenizer.model with, if there is no tokenizer.json: package and module."""
PROBE = "It's 3 o'clock,  said Zoë (née Müller):\n\tx = [1.5, 20]\n東京"
READS_5 = int(transformers.__version__.split(".")[0]) >= 5

logger = logging.getLogger(__name__)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory.

    Raises:
        CheckpointError: no model directory, no tokenizer in it, one that only code of its own or another transformers
            can read, or damaged files. MissingExtraError: only a tokenizer.model, and nothing that reads it.
    """
    directory = Path(directory)
    check_values(directory, read_raw(directory))
    for name in TOKENIZER_FILES:
        refuse_pointer(directory / name)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise CheckpointError(
            f"{directory} has no tokenizer (none of {', '.join(VOCABULARIES)}); copy the model's tokenizer files there"
        )
    config = _config(directory)
    try:
        with transformers_errors_only():
            tokenizer = _load(directory, config)
    except Exception as error:  # the class that the library tokenizers raises
        _check_readers(directory, error)
        # behind a missing reader of a tokenizer.model, which transformers tries next: why tokenizer.json was refused
        first = error.__context__ if isinstance(error, ImportError) else None
        raise CheckpointError(_unreadable(directory, config, first or error)) from error
    if config.get("auto_map"):
        logger.warning(
            "%s names code of its own (auto_map), which is not run; transformers' %s reads its files",
            directory / TOKENIZER_CONFIG,
            type(tokenizer).__name__,
        )
    return tokenizer


def _config(directory: Path) -> dict[str, Any]:
    path = directory / TOKENIZER_CONFIG
    try:
        found = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from the model") from error
    if not isinstance(longest := found.get("model_max_length"), (int, float, NoneType)):
        raise CheckpointError(f"{path} has model_max_length = {longest!r}; expected a number")
    return found


def _load(directory: Path, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Under transformers 4 one saved by 5 in the spelling that 4 knows; the directory stays as it is."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    readable = tokenizer_config_for_both(config)
    if not READS_5 and "extra_special_tokens" in config and "extra_special_tokens" not in readable:
        options |= {"extra_special_tokens": {}, "additional_special_tokens": readable["additional_special_tokens"]}
    renamed = not READS_5 and readable.get("tokenizer_class") == GENERIC != config.get("tokenizer_class")
    kind: Any = PreTrainedTokenizerFast if renamed else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(directory, **options)
    return _as_its_file(directory, tokenizer, options) if READS_5 else tokenizer


def _as_its_file(directory: Path, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Any:
    """The same or, where its class makes other tokens than its tokenizer.json does, what the file alone says.

    Some releases of transformers 5 (5.17 and 5.20; not 5.23) build what tokenizer_config.json calls a LlamaTokenizer
    out of the vocabulary alone, with SentencePiece's rules, also where the file has byte-level ones.
    """
    from tokenizers import Tokenizer  # type: ignore[import-untyped]  # transformers requires it

    file = directory / VOCABULARIES[0]
    if not file.is_file() or not tokenizer.is_fast:
        return tokenizer
    expected = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
    if tokenizer.encode(PROBE, add_special_tokens=False) == expected:
        return tokenizer
    kind: Any = PreTrainedTokenizerFast
    plain = kind.from_pretrained(directory, **options)
    if plain.encode(PROBE, add_special_tokens=False) != expected:
        logger.warning("%s: transformers makes other tokens than tokenizer.json; compare perplexities", directory)
        return tokenizer
    logger.warning("%s: %s makes other tokens than tokenizer.json, which is used", directory, type(tokenizer).__name__)
    return plain


def _check_readers(directory: Path, error: Exception) -> None:
    if (directory / "tokenizer.json").is_file() or not (directory / "tokenizer.model").is_file():
        return
    if missing := [package for package, module in READERS.items() if not _installed(module)]:
        raise MissingExtraError(
            f"the tokenizer of {directory} is a tokenizer.model alone, which transformers reads with sentencepiece and "
            f"protobuf: pip install {' '.join(missing)}, or put the model's tokenizer.json there"
        ) from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _unreadable(directory: Path, config: dict[str, Any], error: BaseException) -> str:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if damage := _damage(directory / VOCABULARIES[0]):
        return f"{directory / VOCABULARIES[0]} is no tokenizer ({damage}); restore it from the model"
    if config.get("auto_map"):
        return (
            f"the tokenizer of {directory} is code of its own ({TOKENIZER_CONFIG}: auto_map = "
            f"{json.dumps(config['auto_map'])}), and no code of a checkpoint is run; put the tokenizer.json of the "
            f"model there and set tokenizer_class to {GENERIC}"
        )
    if "backend" in config and not READS_5:
        return (
            f"the tokenizer of {directory} was saved by transformers 5, and transformers {transformers.__version__} "
            f"cannot read it ({said}); save it with transformers 4, or use transformers 5"
        )
    return f"{directory} has no tokenizer that transformers can read ({said}); copy the model's tokenizer files there"


def _damage(path: Path) -> str:
    """Why a tokenizer.json is none; "" where it is, or is not there."""
    try:
        return "" if not path.is_file() or "model" in read_json(path) else "it has no model"
    except (OSError, ValueError) as error:
        return str(error)
