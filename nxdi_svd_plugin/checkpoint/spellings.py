"""config.json and tokenizer_config.json as transformers 4 and 5 both read them, and without what would run code.

transformers 5 puts RoPE's base and scaling into one object, `rope_parameters`, and calls `torch_dtype` `dtype`;
transformers 4 does not know these names and takes its defaults, RoPE base 10000, without a word. So every config is
read and written with both spellings, and one whose spellings contradict each other is refused.
(transformers v5.0.0 MIGRATION_GUIDE_V5.md; modeling_rope_utils.py, `RotaryEmbeddingConfigMixin`.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError

NOT_THE_MODELS = (
    "auto_map",
    "custom_pipelines",
    *(
        f"{prefix}{kind}_implementation{suffix}"
        for kind in ("attn", "experts")
        for prefix in ("", "_")
        for suffix in ("", "_internal", "_autoset")
    ),
)
"""Keys that name code to run (`attn_implementation` may name a repository of kernels) or a choice of whoever saved."""
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Those of transformers 4.51 and newer (modeling_rope_utils.py, ROPE_INIT_FUNCTIONS)."""
FLOATS = ("float32", "bfloat16", "float16", "float64")
GENERIC = "PreTrainedTokenizerFast"
"""The tokenizer class of both that reads tokenizer.json as it is; transformers 5 also calls it TokenizersBackend."""


def config_for_both(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama or Qwen3 config.json in both spellings; `raw` stays as it is.

    Raises:
        CheckpointError: a value of the wrong type, spellings that say different things, a RoPE that turns only a part
            of a head, or sliding windows in layers where transformers 4 has none.
    """
    config = {key: copy.deepcopy(value) for key, value in raw.items() if key not in NOT_THE_MODELS}
    if not config.get("quantization_config", True):  # not quantized, which transformers says by leaving it out
        del config["quantization_config"]
    _check_windows(config)
    return {**config, **_rope(config), **_dtype(config)}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling (transformers 4) and rope_parameters (5); nothing where a config has none of them."""
    theta, scaling, parameters = (_given(config, key) for key in ("rope_theta", "rope_scaling", "rope_parameters"))
    if theta is None and scaling is None and parameters is None:
        return {}
    if parameters is None:
        base = {} if theta is None else {"rope_theta": theta}
        parameters = {"rope_type": "default", **_normal(scaling or {}), **base}
    theirs = {"rope_theta": theta, **parameters}
    without = _normal({key: value for key, value in theirs.items() if key != "rope_theta"})
    _check_part(config, without)
    if theta is not None and theta != theirs["rope_theta"]:
        raise _contradiction("rope_theta", theta, "rope_parameters.rope_theta", theirs["rope_theta"])
    if scaling is not None and _normal(scaling) != without:
        raise _contradiction("rope_scaling", scaling, "rope_parameters", parameters)
    if without["rope_type"] not in ROPE_TYPES:
        raise CheckpointError(f"rope_type is {without['rope_type']!r}; expected one of {', '.join(ROPE_TYPES)}")
    scaled = None if without == {"rope_type": "default"} else without
    base = {} if theirs["rope_theta"] is None else {"rope_theta": _base(theirs["rope_theta"])}
    return {**base, "rope_scaling": scaled, "rope_parameters": {**without, **base}}


def _given(config: Mapping[str, Any], key: str) -> Any:
    """A RoPE value; an object of plain values, or None, where it is one."""
    value = config.get(key)
    if key == "rope_theta" or value is None:
        return value
    if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
        raise CheckpointError(f"{key} is {value!r}; expected one object for all layers, or null")
    return value


def _normal(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A scaling under the newer name of its kind; "type" is the older one."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return {"rope_type": kind, **{key: value for key, value in scaling.items() if key not in ("type", "rope_type")}}


def _base(theta: Any) -> Any:
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise CheckpointError(f"rope_theta is {theta!r}; expected a positive number")
    return theta


def _check_part(config: Mapping[str, Any], parameters: dict[str, Any]) -> None:
    for part in (config.get("partial_rotary_factor"), parameters.pop("partial_rotary_factor", None)):
        if part not in (None, 1):
            raise CheckpointError(f"partial_rotary_factor is {part!r}; Llama and Qwen3 turn whole heads: expected 1")


def _dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    """torch_dtype (transformers 4) and dtype (5)."""
    old, new = config.get("torch_dtype"), config.get("dtype")
    for key, found in (("torch_dtype", old), ("dtype", new)):
        if found is not None and found not in FLOATS:
            raise CheckpointError(f"{key} is {found!r}; expected one of {', '.join(FLOATS)}")
    if old is None and new is None:
        return {}
    if None not in (old, new) and old != new:
        raise _contradiction("torch_dtype", old, "dtype", new)
    found = new if old is None else old
    return {"torch_dtype": found, "dtype": found}


def _check_windows(config: Mapping[str, Any]) -> None:
    """transformers 5 reads `layer_types`, transformers 4.51 derives the same from three other keys."""
    kinds = config.get("layer_types")
    if kinds is None or config.get("model_type") not in ("qwen3", "svd_qwen3"):
        return
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    first = config.get("max_window_layers", 28)
    if not isinstance(kinds, list) or not isinstance(first, int):
        raise CheckpointError(f"layer_types is {kinds!r}, max_window_layers {first!r}; expected a list and a number")
    derived = ["sliding_attention" if slides and i >= first else "full_attention" for i in range(len(kinds))]
    if kinds != derived:
        new, old = (layers.count("sliding_attention") for layers in (kinds, derived))
        raise CheckpointError(
            f"layer_types, which transformers 5 reads, has {new} sliding layers; "
            f"use_sliding_window, sliding_window and max_window_layers, which transformers 4 reads, make {old}; "
            "correct one of them"
        )


def _contradiction(old: str, first: Any, new: str, second: Any) -> CheckpointError:
    return CheckpointError(
        f"{old}, which transformers 4 reads, is {first!r}, and {new}, which transformers 5 reads, {second!r}; "
        "remove the wrong one"
    )


def tokenizer_config_for_both(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json in the spelling that transformers 4 and 5 read, without custom code."""
    config = {key: value for key, value in raw.items() if key not in NOT_THE_MODELS}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = GENERIC
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
