"""Is a compressed directory complete and undamaged? One check after the other, none hides the next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from nxdi_svd_plugin.checkpoint.names import CONFIG, HEAD, ORDER, REPORT, ROTARY_BUFFER
from nxdi_svd_plugin.checkpoint.reader import Reader, file_sha256
from nxdi_svd_plugin.checkpoint.source import check_sizes, config_errors, read_raw
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import MODEL_TYPES


@dataclass(frozen=True)
class Check:
    """One question and its answer; `detail` names the first faults or says what was compared."""

    name: str
    ok: bool
    detail: str


def verify(directory: Path, base: Path | None = None) -> list[Check]:
    """Check keys, shapes, finiteness and hashes of `directory`; with `base`, that what was not compressed equals it.

    Raises:
        CheckpointError: the directory or a file cannot be read at all, or it is not a compressed one.
    """
    config = compressed_config(directory)
    expected = expected_shapes(directory)
    reader = Reader(directory)
    checks = [*check_names(reader, config, expected), check_finite(reader), check_hashes(directory, reader)]
    if base is not None:
        checks.append(check_base(reader, Reader(base), expected, neuron_order(directory)))
    return checks


def compressed_config(directory: Path) -> dict[str, Any]:
    """config.json of a compressed directory.

    Raises:
        CheckpointError: unreadable, unfinished, without sizes, dense, or its model_type was set back to the dense one.
    """
    config = read_raw(directory)
    model_type = config.get("model_type")
    if model_type not in tuple(MODEL_TYPES.values()) or not isinstance(config.get("svd_config"), dict):
        raise CheckpointError(
            f"{directory} is not a compressed directory: config.json has model_type {model_type!r}; "
            f"expected {' or '.join(MODEL_TYPES.values())}, and the object svd_config"
        )
    check_sizes(directory, config)
    if "quantization_config" in config:
        raise CheckpointError(f"{directory / CONFIG} has a quantization_config; compressed models have none: remove it")
    return config


def expected_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from transformers' own class on the meta device; no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nxdi_svd_plugin.modeling.auto import register

    register()
    with config_errors(directory), torch.device("meta"):
        settings = AutoConfig.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_config(settings)  # type: ignore[no-untyped-call]
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_names(reader: Reader, config: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> Iterator[Check]:
    """Names and shapes. A tied lm_head may be stored or left out."""
    optional = {HEAD} if config.get("tie_word_embeddings", False) else set()
    found = {name: info.shape for name, info in reader.tensors.items() if not ROTARY_BUFFER.fullmatch(name)}
    missing = sorted(set(expected) - set(found) - optional)
    extra = sorted(set(found) - set(expected))
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    yield answer("no tensor is missing", missing, f"{len(expected)} expected")
    yield answer("no tensor is unexpected", extra, f"{len(found)} found")
    yield answer("shapes fit config.json", wrong, "all")


def check_finite(reader: Reader) -> Check:
    """NaN and infinity, one tensor in memory at a time."""
    bad = [name for name in reader.tensors if not torch.isfinite(reader.get(name)).all()]
    return answer("all values are finite", bad, f"{len(reader.tensors)} tensors")


def check_hashes(directory: Path, reader: Reader) -> Check:
    """sha256 of each weight file against report.json."""
    name = "files have the hashes in report.json"
    try:
        files = json.loads((directory / REPORT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Check(name, False, f"{REPORT} has no readable file hashes: {error!r}")
    bad = [file for file in files if not (directory / file).is_file() or file_sha256(directory / file) != files[file]]
    bad += [f"{file} (not in {REPORT})" for file in reader.files if file not in files]
    return answer(name, bad, f"{len(files)} files")


def neuron_order(directory: Path) -> torch.Tensor | None:
    """Where each stored intermediate neuron was in the source [layers, I], None when nothing was moved."""
    path = directory / ORDER
    try:
        return torch.from_numpy(numpy.load(path, allow_pickle=False)).long() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; compress the model again") from error


def in_order(name: str, weight: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """A base weight with its intermediate neurons where the compressed directory has them."""
    if order is None or ".mlp." not in name:
        return weight
    moved = order[int(name.split(".")[2])]
    return weight[:, moved] if "down_proj" in name else weight[moved]


def check_base(reader: Reader, base: Reader, expected: dict[str, tuple[int, ...]], order: torch.Tensor | None) -> Check:
    """Tensors that are not factors are bit-equal to the base's, and the base has no other but the factored weights."""
    factors = {name for name in expected if ".mlp." in name and not name.endswith(".weight")}
    untouched = [name for name in reader.tensors if name not in factors]
    bad = [
        name
        for name in untouched
        if name not in base.tensors or not same_bits(reader.get(name), in_order(name, base.get(name), order))
    ]
    replaced = {name.rsplit(".", 1)[0] + ".weight" for name in factors}
    bad += [f"{n} (base only)" for n in base.tensors if n not in reader.tensors and n not in replaced]
    return answer("untouched tensors equal the base's", bad, f"{len(untouched)} tensors")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def answer(name: str, faults: list[str], fine: str) -> Check:
    """A check that holds if there are no faults."""
    more = ", ..." if len(faults) > 3 else ""
    return Check(name, not faults, f"{len(faults)}: {', '.join(faults[:3])}{more}" if faults else fine)
