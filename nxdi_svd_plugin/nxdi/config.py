"""`mlp_impl` in NxDI's configuration of Llama and Qwen3, and the checks that keep it honest.

NxDI drops options it does not know with a routine warning, and runs absent weights as random ones. So an unknown value,
a compressed checkpoint without `mlp_impl`, `mlp_impl` without factors and incompatible options are errors here.
"""

from __future__ import annotations

from typing import Any

from neuronx_distributed_inference.models.config import NeuronConfig
from neuronx_distributed_inference.models.llama.modeling_llama import LlamaInferenceConfig
from neuronx_distributed_inference.models.qwen3.modeling_qwen3 import Qwen3InferenceConfig, Qwen3NeuronConfig

from nxdi_svd_plugin.errors import NxdiError, SvdError
from nxdi_svd_plugin.nxdi import refusals
from nxdi_svd_plugin.nxdi.mlp_impl import DENSE, check_mlp_impl
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.cores import sharing
from nxdi_svd_plugin.stored.layers import Layers, groups_of, parse_layers


class MlpImplOption:
    """Mixin before a NeuronConfig: the option `mlp_impl`, one of mlp_impl.MLP_IMPLS, "dense" by default."""

    def __init__(self, **kwargs: Any) -> None:
        self.mlp_impl = check_mlp_impl(kwargs.pop("mlp_impl", DENSE))
        super().__init__(**kwargs)


class SvdLlamaNeuronConfig(MlpImplOption, NeuronConfig):  # type: ignore[misc]
    """NeuronConfig with `mlp_impl`."""


class SvdQwen3NeuronConfig(MlpImplOption, Qwen3NeuronConfig):  # type: ignore[misc]
    """Qwen3's NeuronConfig with `mlp_impl`."""


class CheckedConfig:
    """Mixin before an InferenceConfig whose neuron config has `mlp_impl`."""

    _neuron_config_cls: type[NeuronConfig]

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        """The class that NxDI builds the neuron config with, also when it reloads neuron_config.json."""
        return cls._neuron_config_cls

    def validate_config(self) -> None:
        """NxDI's checks and the plugin's, at construction and on reload."""
        super().validate_config()  # type: ignore[misc]
        check_config(self)


class SvdLlamaInferenceConfig(CheckedConfig, LlamaInferenceConfig):  # type: ignore[misc]
    """LlamaInferenceConfig whose neuron config has `mlp_impl`."""

    _neuron_config_cls = SvdLlamaNeuronConfig


class SvdQwen3InferenceConfig(CheckedConfig, Qwen3InferenceConfig):  # type: ignore[misc]
    """Qwen3InferenceConfig whose neuron config has `mlp_impl`."""

    _neuron_config_cls = SvdQwen3NeuronConfig


def check_config(config: Any) -> None:
    """Check `mlp_impl` against the checkpoint's config and every other option; `config` is an InferenceConfig.

    Raises:
        NxdiError: mlp_impl without factors, factors without mlp_impl, an incompatible option, or a tp_degree that the
            heads, the groups or the pivots do not go evenly with.
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
    _check_cores(stored_layers(config) or {}, neuron_config.tp_degree)


def _check_heads(config: Any, mlp_impl: str) -> None:
    """Stock NxDI fails on head counts that tp does not divide with a shape error of k_proj; say it earlier."""
    heads, degree = config.num_attention_heads, config.neuron_config.tp_degree
    if heads % degree:
        raise NxdiError(
            f"mlp_impl={mlp_impl!r} with tp_degree={degree}: it does not divide num_attention_heads={heads}; "
            "NxDI cannot shard the attention. Choose a tp_degree that divides it"
        )


def _check_cores(layers: Layers, degree: int) -> None:
    """Groups, and the pivots of each, go evenly on the cores."""
    try:
        sharing(groups_of(layers), degree)
    except SvdError as error:
        raise NxdiError(f"tp_degree={degree}: {error}") from error
    for index, mlp in layers.items():
        try:
            core_runs(mlp, sharing(mlp.groups, degree).cores)
        except SvdError as error:
            raise NxdiError(f"tp_degree={degree}: layer {index}: {error}") from error


def stored_layers(config: Any) -> Layers | None:
    """What every layer stores, or None where `mlp_impl` is "dense" (stock MLPs).

    Raises:
        CheckpointError: svd_config cannot be read.
    """
    if getattr(config.neuron_config, "mlp_impl", DENSE) == DENSE:
        return None
    return parse_layers(config.svd_config, config.num_hidden_layers, config.intermediate_size)
