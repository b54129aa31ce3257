"""Loading a directory so that a damaged one raises: `load_pretrained` a compressed one, `load_model` either kind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from nxdi_svd_plugin.checkpoint.generation import SPECIAL, read_generation
from nxdi_svd_plugin.checkpoint.names import GENERATION
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import check_sizes, config_errors, read_raw, transformers_config
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.auto import register
from nxdi_svd_plugin.modeling.strict import check_loading_info, some
from nxdi_svd_plugin.stored.layers import MODEL_TYPES

CUSTOM_GENERATE = "custom_generate/generate.py"
"""transformers 4.51 to 4.57 run this file of a local directory when they load the model, whatever trust_remote_code is
(generation/utils.py, `load_custom_generate`)."""
DTYPE_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"

logger = logging.getLogger(__name__)


def load_pretrained(directory: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load a compressed directory; every weight is there, has its shape and is finite, or this raises.

    Args:
        directory: written by `compress`.
        dtype: torch.float32, torch.bfloat16, ..., or "auto" for the one in config.json.
    Raises:
        CheckpointError: no such directory, a dense model, another model_type, damaged or missing files, missing,
            unexpected, wrongly shaped or non-finite tensors.
    """
    directory = Path(directory).expanduser()
    model_type = read_raw(directory).get("model_type")
    if model_type in tuple(MODEL_TYPES):
        raise CheckpointError(
            f"{directory} is a dense {model_type} model; compress it with `nxdi-svd compress`, or load it with "
            "AutoModelForCausalLM"
        )
    if model_type not in tuple(MODEL_TYPES.values()):
        raise CheckpointError(
            f"{directory} has model_type {model_type!r}; this version loads {', '.join(MODEL_TYPES.values())}"
        )
    return load_model(directory, dtype)


def load_model(directory: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load a dense or a compressed directory as strictly as `load_pretrained`; for comparing the two.

    Raises:
        CheckpointError: as `load_pretrained`, and for a model type that the plugin does not compress or special tokens
            that are no token ids.
    """
    directory = Path(directory).expanduser()
    known = (*MODEL_TYPES, *MODEL_TYPES.values())
    config = read_raw(directory)
    if (model_type := config.get("model_type")) not in known:
        raise CheckpointError(
            f"{directory}/config.json has model_type {model_type!r}; expected one of {', '.join(known)}"
        )
    check_sizes(directory, config)
    if (directory / CUSTOM_GENERATE).exists():
        raise CheckpointError(
            f"{directory} brings code of its own ({CUSTOM_GENERATE}), which transformers would run: use a copy without"
        )
    # damaged files, pointers, paths outside, dtypes that nothing here computes with
    Reader(directory, doubles=True).check_head(config)
    register()
    options: dict[str, Any] = {DTYPE_ARGUMENT: dtype, "output_loading_info": True, "local_files_only": True}
    options |= {"use_safetensors": True, "trust_remote_code": False}
    options["ignore_mismatched_sizes"] = True  # the info has them, we raise
    try:
        with config_errors(directory), transformers_errors_only():  # what it warns of, we raise
            options["config"] = transformers_config(config)
            options["generation_config"] = generation_config(directory)
            loaded = AutoModelForCausalLM.from_pretrained(directory, **options)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    check_loading_info(info)
    check_finite(model)
    return model


def generation_config(directory: Path) -> GenerationConfig | None:
    """What generation_config.json says; only its special tokens, with a warning, where transformers refuses the rest.

    None without the file: transformers then takes the special tokens of config.json.

    Raises:
        CheckpointError: as `read_generation`.
    """
    found = read_generation(directory)
    if found is None:
        return None
    config: Any = GenerationConfig
    try:
        # whether it was made of config.json does not matter, and that mark asks for a hash that from_pretrained takes
        return cast("GenerationConfig", config.from_dict({k: v for k, v in found.items() if k != "_from_model_config"}))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        logger.warning(
            "%s is used for its special tokens alone: transformers takes no more of it (%s)",
            directory / GENERATION,
            said,
        )
        return cast("GenerationConfig", config(**{key: found.get(key) for key in SPECIAL}))


@contextmanager
def transformers_errors_only() -> Iterator[None]:
    """transformers logs errors only and shows no bars: its advice to train a model whose weights are missing is not
    ours, and version 5 draws a bar for every model it loads."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def check_finite(model: torch.nn.Module) -> None:
    """Raise if a parameter holds NaN or an infinity.

    Raises:
        CheckpointError: naming the first ones.
    """
    bad = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(f"non-finite values in {some(bad)}: the weights are damaged, compress or copy them again")
