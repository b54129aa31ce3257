"""What config.json alone says about a model, dense or compressed. Unusable ones are refused here."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from nxdi_svd_plugin.checkpoint.generation import check_special
from nxdi_svd_plugin.checkpoint.names import CONFIG, UNFINISHED, parse_json
from nxdi_svd_plugin.checkpoint.spellings import config_for_both
from nxdi_svd_plugin.errors import CheckpointError, SvdError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.stored.layers import MODEL_TYPES, Layers, parse_layers
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
MOST_LAYERS = 10_000
"""Far more than any model has; every layer is described by itself, in memory."""
HEAD_SIZES = ("num_key_value_heads", "head_dim")
"""Derived from the others where they are null or left out."""
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
RETURNED = (
    "return_dict",
    "use_return_dict",
    "torchscript",
    "output_attentions",
    "output_hidden_states",
    "is_encoder_decoder",
)
"""Keys that change what a forward pass gives back, and nothing that it computes."""

ADAPTER = "adapter_config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""org/name."""


@dataclass(frozen=True)
class SourceConfig:
    """A dense Llama or Qwen3 model's config.json, checked.

    raw: the JSON object, as read_raw gives it. model_type: the dense one.
    """

    directory: Path
    raw: dict[str, Any]
    model_type: str
    hidden: int
    intermediate: int
    layers: int

    def dims(self, projection: str) -> tuple[int, int]:
        """(in, out) of an MLP projection."""
        return READS[projection].dims(self.hidden, self.intermediate)

    @property
    def mlp_parameters(self) -> int:
        """Numbers in all dense MLP weights."""
        return 3 * self.hidden * self.intermediate * self.layers


def read_config(directory: str | Path) -> SourceConfig:
    """Read and check `directory`/config.json.

    Raises:
        CheckpointError: no directory or config, unreadable JSON, an unsupported architecture, an already compressed or
            quantized model, missing sizes, an MLP that narrows, is not SiLU or has biases.
    """
    directory = Path(directory)
    raw = read_raw(directory)
    model_type = raw.get("model_type")
    if model_type in MODEL_TYPES.values() or "svd_config" in raw:
        raise CheckpointError(f"{directory} is already compressed; give the dense model it was made from")
    if model_type not in tuple(MODEL_TYPES):  # a tuple: what was found need not be hashable
        raise CheckpointError(
            f"{directory / CONFIG} has model_type {model_type!r}; supported are {', '.join(MODEL_TYPES)}"
            + (" (mixture-of-experts models have no single MLP to factor)" if "num_local_experts" in raw else "")
        )
    check_sizes(directory, raw)
    if raw["intermediate_size"] < raw["hidden_size"]:
        raise CheckpointError(
            f"{directory / CONFIG} has intermediate_size {raw['intermediate_size']} below hidden_size "
            f"{raw['hidden_size']}; only MLPs that widen are supported"
        )
    if raw.get("mlp_bias"):
        raise CheckpointError(f"{directory} has MLP biases (mlp_bias: true); only MLPs without bias are supported")
    return SourceConfig(
        directory, raw, model_type, raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    )


@dataclass(frozen=True)
class CompressedConfig:
    """A compressed directory's config.json, checked.

    dense: the sizes, as of the dense model it was made from; its `raw` is this config.json.
    svd_config: the object of that name. layers: what it says every layer stores.
    """

    dense: SourceConfig
    svd_config: dict[str, Any]
    layers: Layers


def read_compressed(directory: Path) -> CompressedConfig:
    """Read and check the config.json of a compressed directory.

    Raises:
        CheckpointError: unreadable, unfinished, without sizes, dense, its model_type was set back to the dense one, or
            an svd_config that does not fit it.
    """
    raw = read_raw(directory)
    model_type, svd_config = raw.get("model_type"), raw.get("svd_config")
    names = {compressed: dense for dense, compressed in MODEL_TYPES.items()}
    if not isinstance(model_type, str) or model_type not in names or not isinstance(svd_config, dict):
        raise CheckpointError(
            f"{directory} is not a compressed directory: config.json has model_type {model_type!r}; "
            f"expected {' or '.join(names)}, and the object svd_config"
        )
    check_sizes(directory, raw)
    if raw.get("mlp_bias"):
        raise CheckpointError(f"{directory / CONFIG} has mlp_bias; compressed models have no MLP biases: remove it")
    hidden, intermediate, count = raw["hidden_size"], raw["intermediate_size"], raw["num_hidden_layers"]
    try:
        layers = parse_layers(svd_config, count, intermediate)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error
    return CompressedConfig(
        SourceConfig(directory, raw, names[model_type], hidden, intermediate, count), svd_config, layers
    )


def read_raw(directory: Path) -> dict[str, Any]:
    """`directory`/config.json of a dense or compressed model, in the spellings of transformers 4 and 5 (spellings.py).

    Raises:
        CheckpointError: no directory, no config.json (an unfinished output has none, a folder of the hub's cache has it
            further in), a Git LFS pointer, not a JSON object, spellings that contradict each other; an adapter, which
            transformers adds to the weights if peft is installed.
    """
    path = directory / CONFIG
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; {_instead(directory)}")
    refuse_pointer(path)
    if not path.is_file() and (directory / UNFINISHED).is_dir():
        raise CheckpointError(f"{directory} is unfinished; run its command again with --resume")
    _refuse_adapter(directory, alone=not path.is_file())
    if not path.is_file():
        inside = sorted(directory.glob(f"snapshots/*/{CONFIG}"))
        what = f"one of its snapshots, {inside[0].parent}" if inside else "a Hugging Face model directory"
        raise CheckpointError(f"{directory} has no {CONFIG}; give {what}")
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore it from the source") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}; expected a JSON object")
    try:
        return config_for_both(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _refuse_adapter(directory: Path, *, alone: bool) -> None:
    if not (directory / ADAPTER).is_file():
        return
    what = "is an adapter of another model" if alone else "holds an adapter beside its weights"
    way = "" if alone else ", or use a copy without it"
    raise CheckpointError(
        f"{directory} {what} ({ADAPTER}), which transformers adds where peft is installed and nobody does elsewhere; "
        f"merge it (peft: merge_and_unload, then save_pretrained){way}"
    )


def _instead(directory: Path) -> str:
    """What to give in place of a directory that is not there: perhaps it is the name of a model on the hub."""
    if directory.exists():
        return f"give the directory of the model, {directory.parent}"
    if HUB_ID.fullmatch(str(directory)):
        return f"if it is a model on the Hugging Face hub: `hf download {directory} --local-dir {directory.name}`"
    return "give a local Hugging Face model directory"


def check_sizes(directory: Path, raw: dict[str, Any]) -> None:
    """Raises CheckpointError for a quantized model, a size in config.json that is no positive integer, an activation
    that is not SiLU, a switch that is not true or false, or a special token that is no token id.

    Sizes that have defaults and its epsilon are checked where they are given.
    """
    if raw.get("quantization_config"):
        found = raw["quantization_config"]
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        raise CheckpointError(
            f"{directory} is quantized ({method}); give the unquantized model (float32, bfloat16 or float16)"
        )
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise CheckpointError(f"{directory / CONFIG} has hidden_act {act!r}; only SiLU MLPs (silu) are supported")
    eps = raw.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
        raise CheckpointError(f"{directory / CONFIG} has rms_norm_eps = {eps!r}; expected a positive number")
    given = [key for key in HEAD_SIZES if raw.get(key) is not None]
    for key in (*SIZES, *given, *(["max_position_embeddings"] if "max_position_embeddings" in raw else [])):
        if not isinstance(raw.get(key), int) or isinstance(raw[key], bool) or raw[key] < 1:
            raise CheckpointError(f"{directory / CONFIG} has {key} = {raw.get(key)!r}; expected a positive integer")
    if raw["num_hidden_layers"] > MOST_LAYERS:
        raise CheckpointError(
            f"{directory / CONFIG} has num_hidden_layers = {raw['num_hidden_layers']}; expected at most {MOST_LAYERS}"
        )
    check_values(directory, raw)
    if (pad := raw.get("pad_token_id")) is not None and pad >= raw["vocab_size"]:
        raise CheckpointError(
            f"{directory / CONFIG} has pad_token_id = {pad}, the model has {raw['vocab_size']} embeddings; set it to "
            "null or to the end token"
        )


def check_values(directory: Path, raw: dict[str, Any]) -> None:
    """Raises CheckpointError for a switch that is not true or false, or a special token that is no token id: what
    transformers 5 would call a tokenizer that it cannot read."""
    for key in SWITCHES:
        if not isinstance(raw.get(key), (bool, NoneType)):
            raise CheckpointError(f"{directory / CONFIG} has {key} = {raw[key]!r}; expected true or false")
    check_special(directory / CONFIG, raw)


@contextmanager
def config_errors(directory: Path) -> Iterator[None]:
    """Around what transformers builds from a config.json, of which it checks little: what it trips over is one error.

    Raises:
        CheckpointError: names the file and what transformers said.
    """
    try:
        yield
    except SvdError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{directory / CONFIG} describes no model that transformers can build ({type(error).__name__}: {said}); "
            "restore it from its source"
        ) from error


def one_layer_config(config: SourceConfig) -> Any:
    """The transformers config of the same model with a single decoder layer and a vocabulary of one.

    Sliding windows are switched off: the samples are not longer than a window (checked by the caller).
    """
    raw = {key: value for key, value in config.raw.items() if key not in {"layer_types", "dtype", "torch_dtype"}}
    raw.update(num_hidden_layers=1, vocab_size=1, use_sliding_window=False)
    raw |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return transformers_config({**raw, "model_type": config.model_type})


def transformers_config(raw: Mapping[str, Any]) -> Any:
    """The transformers config of what `read_raw` gave, for a model that gives back what it does by default."""
    from transformers import AutoConfig

    values = {key: value for key, value in as_known_here(raw).items() if key not in ("model_type", *RETURNED)}
    return AutoConfig.for_model(raw["model_type"], **copy.deepcopy(values))  # transformers 5 edits it


def as_known_here(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config in both spellings without `dtype` where this transformers (before 4.56) does not know it: it would save
    it as it was read, beside the torch_dtype of what is saved."""
    from transformers import PretrainedConfig

    known = hasattr(PretrainedConfig(), "dtype")
    return {key: value for key, value in raw.items() if known or key != "dtype"}


def check_buildable(config: SourceConfig) -> None:
    """Let transformers build one layer of the model on the meta device.

    Raises:
        CheckpointError: it cannot; says why.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with config_errors(config.directory), torch.device("meta"):
        AutoModelForCausalLM.from_config(one_layer_config(config))  # type: ignore[no-untyped-call]


def projections(config: SourceConfig) -> list[tuple[int, str]]:
    """(layer, projection) of every MLP weight, in file order."""
    return [(layer, name) for layer in range(config.layers) for name in PROJECTIONS]
