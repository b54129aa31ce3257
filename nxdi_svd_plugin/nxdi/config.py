"""`mlp_impl` in NxDI's configuration of Llama and Qwen3, and the checks that keep it honest.

NxDI drops options it does not know with a routine warning, and runs absent weights as random ones. So an unknown value,
a compressed checkpoint without `mlp_impl`, `mlp_impl` without factors and incompatible options are errors here.
"""

from __future__ import annotations

import difflib
from typing import Any

from neuronx_distributed_inference.models.config import NeuronConfig
from neuronx_distributed_inference.models.llama.modeling_llama import LlamaInferenceConfig
from neuronx_distributed_inference.models.qwen3.modeling_qwen3 import Qwen3InferenceConfig, Qwen3NeuronConfig

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi import refusals
from nxdi_svd_plugin.stored.layers import Layers, parse_layers

DENSE, SVD, FUSED = "dense", "svd", "svd_fused"
MLP_IMPLS = (DENSE, SVD, FUSED)


def check_mlp_impl(value: object) -> str:
    """The value of `mlp_impl`; raises NxdiError with a suggestion if it is none of MLP_IMPLS."""
    if value in MLP_IMPLS:
        return str(value)
    close = difflib.get_close_matches(str(value), MLP_IMPLS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise NxdiError(f"mlp_impl={value!r} is unknown; use one of {', '.join(map(repr, MLP_IMPLS))}.{hint}")


class SvdLlamaNeuronConfig(NeuronConfig):  # type: ignore[misc]
    """NeuronConfig with `mlp_impl`: "dense" (stock, the default), "svd" (XLA ops) or "svd_fused" (NKI kernels)."""

    def __init__(self, **kwargs: Any) -> None:
        self.mlp_impl = check_mlp_impl(kwargs.pop("mlp_impl", DENSE))
        super().__init__(**kwargs)


class SvdQwen3NeuronConfig(Qwen3NeuronConfig):  # type: ignore[misc]
    """Qwen3's NeuronConfig with `mlp_impl`, see SvdLlamaNeuronConfig."""

    def __init__(self, **kwargs: Any) -> None:
        self.mlp_impl = check_mlp_impl(kwargs.pop("mlp_impl", DENSE))
        super().__init__(**kwargs)


class SvdLlamaInferenceConfig(LlamaInferenceConfig):  # type: ignore[misc]
    """LlamaInferenceConfig whose neuron config has `mlp_impl`."""

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class that NxDI builds the neuron config with, also when it reloads neuron_config.json."""
        return SvdLlamaNeuronConfig

    def validate_config(self) -> None:
        """NxDI's checks and the plugin's, at construction and on reload."""
        super().validate_config()
        check_config(self)


class SvdQwen3InferenceConfig(Qwen3InferenceConfig):  # type: ignore[misc]
    """Qwen3InferenceConfig whose neuron config has `mlp_impl`."""

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class that NxDI builds the neuron config with, also when it reloads neuron_config.json."""
        return SvdQwen3NeuronConfig

    def validate_config(self) -> None:
        """NxDI's checks and the plugin's, at construction and on reload."""
        super().validate_config()
        check_config(self)


def check_config(config: Any) -> None:
    """Check `mlp_impl` against the checkpoint's config and every other option; `config` is an InferenceConfig.

    Raises:
        NxdiError: mlp_impl without factors, factors without mlp_impl, or an incompatible option.
        CheckpointError: the checkpoint's svd_config cannot be read.
    """
    neuron_config = config.neuron_config
    compressed = getattr(config, "svd_config", None) is not None
    if compressed and not hasattr(neuron_config, "mlp_impl"):
        raise NxdiError(
            f"the checkpoint is SVD-compressed but the neuron config is a {type(neuron_config).__name__}, which drops "
            "mlp_impl; build it with App.get_neuron_config_cls()(mlp_impl='svd_fused', ...)"
        )
    mlp_impl = check_mlp_impl(getattr(neuron_config, "mlp_impl", DENSE))
    if compressed and mlp_impl == DENSE:
        raise NxdiError(
            "the checkpoint is SVD-compressed and has no dense MLP weights, but mlp_impl is 'dense' (the default); "
            "set mlp_impl='svd_fused' (NKI kernels) or mlp_impl='svd' (XLA ops)"
        )
    if mlp_impl == DENSE:
        return
    if not compressed:
        raise NxdiError(
            f"mlp_impl={mlp_impl!r}, but the checkpoint's config.json has no svd_config: it is dense. Compress it with "
            "`nxdi-svd compress` or unset mlp_impl"
        )
    refusals.check(config, mlp_impl)
    _check_heads(config, mlp_impl)
    parse_layers(config.svd_config, config.num_hidden_layers)


def _check_heads(config: Any, mlp_impl: str) -> None:
    """Stock NxDI fails on head counts that tp does not divide with a shape error of k_proj; say it earlier."""
    heads, degree = config.num_attention_heads, config.neuron_config.tp_degree
    if heads % degree:
        raise NxdiError(
            f"mlp_impl={mlp_impl!r} with tp_degree={degree}: it does not divide num_attention_heads={heads}; "
            "NxDI cannot shard the attention. Choose a tp_degree that divides it"
        )


def factored_layers(config: Any) -> Layers | None:
    """Form and rank of every MLP projection by layer, or None where `mlp_impl` is "dense" (stock MLPs)."""
    if getattr(config.neuron_config, "mlp_impl", DENSE) == DENSE:
        return None
    return parse_layers(config.svd_config, config.num_hidden_layers)
