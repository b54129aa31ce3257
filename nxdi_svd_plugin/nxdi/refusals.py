"""The NxDI options that do not go together with a low-rank MLP, each with its reason and remedy.

NxDI ignores what it cannot honour without a word, so every option that would bypass, duplicate or reinterpret the MLP
is refused by name. The options were read in the sources of NxDI 0.6 to 0.9; an option that a version lacks is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi.mlp_impl import FUSED
from nxdi_svd_plugin.stored.projection import PROJECTIONS


@dataclass(frozen=True)
class Refusal:
    """One option: when its value is refused, and why; the remedy follows from `allowed`."""

    option: str
    refused: Callable[[Any], bool]
    reason: str
    allowed: str = "unset it"


def _above_one(value: Any) -> bool:
    return value is not None and int(value) > 1


def _not_none(value: Any) -> bool:
    return value is not None


def _targets_mlp(lora_config: Any) -> bool:
    targets = getattr(lora_config, "target_modules", None) or ()
    targets = [targets] if isinstance(targets, str) else targets
    return any(name in target for name in PROJECTIONS for target in targets)


_OWN_MLP = "it selects another MLP kernel, which expects dense weights and moves the norm or the residual into the MLP"
_QUANTIZED = "the factors are not quantised, and NxDI's quantisation works on dense weights that are not there"
_DRAFT = "the draft model would inherit mlp_impl and its ranks; it is not tested"

NEURON_CONFIG = (
    Refusal("mlp_tkg_nki_kernel_enabled", bool, _OWN_MLP),
    Refusal("mlp_kernel_fuse_residual_add", bool, _OWN_MLP),
    Refusal("quantized_mlp_kernel_enabled", bool, _OWN_MLP),
    Refusal("mlp_kernel_enabled", bool, _OWN_MLP),
    Refusal("rmsnorm_quantize_kernel_enabled", bool, _QUANTIZED),
    Refusal("activation_quantization_type", bool, _QUANTIZED),
    Refusal("quantized", bool, _QUANTIZED),
    Refusal("mlp_cp_degree", _above_one, "it duplicates the MLP with other process groups", "set it to 1"),
    Refusal("padded_hidden_size", _not_none, "the factors have the unpadded hidden size"),
    Refusal("padded_intermediate_size", _not_none, "the plugin pads the intermediate size itself"),
    Refusal("enable_eagle_speculation", bool, _DRAFT),
    Refusal("enable_fused_speculation", bool, _DRAFT),
    Refusal("is_eagle_draft", bool, _DRAFT),
    Refusal("is_medusa", bool, "it is not tested"),
    Refusal(
        "lora_config",
        _targets_mlp,
        "its target_modules contain MLP projections, which are low-rank",
        "target attention modules only",
    ),
)
FUSED_ONLY = (
    Refusal(
        "logical_nc_config",
        _above_one,
        "the fused kernels are written for one physical core of Trn1",
        "set it to 1 or use mlp_impl='svd'",
    ),
)
MODEL_CONFIG = (
    Refusal("hidden_act", lambda act: act not in ("silu", "swish"), "the fused MLP computes SiLU", "use a SiLU model"),
    Refusal("mlp_bias", bool, "low-rank projections have no bias", "use a model without MLP biases"),
)


def check(config: Any, mlp_impl: str) -> None:
    """Refuse every option of `config` (an InferenceConfig) that does not go together with `mlp_impl`.

    Raises:
        NxdiError: names the option, its value, the reason and what to do.
    """
    fused_only = FUSED_ONLY if mlp_impl == FUSED else ()
    for owner, table in ((config.neuron_config, (*NEURON_CONFIG, *fused_only)), (config, MODEL_CONFIG)):
        for option, value, entry in _refused(owner, table):
            raise _error(mlp_impl, option, value, entry)


def _refused(owner: Any, table: tuple[Refusal, ...]) -> Iterator[tuple[str, Any, Refusal]]:
    for entry in table:
        value = getattr(owner, entry.option, None)
        if value is not None and entry.refused(value):
            yield entry.option, value, entry


def _error(mlp_impl: str, option: str, value: Any, entry: Refusal) -> NxdiError:
    shown = value if isinstance(value, (bool, int, str)) else type(value).__name__
    return NxdiError(f"mlp_impl={mlp_impl!r} does not go with {option}={shown!r}: {entry.reason}; {entry.allowed}")
