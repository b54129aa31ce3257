"""NxDI's Llama and Qwen3 with factored MLPs, by the smallest set of overrides that fits NxDI 0.6 to 0.9.

The decoder layers are NxDI's own; after they are built, each layer's `mlp` is replaced. With `mlp_impl="dense"` the
classes are the stock ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuronx_distributed_inference.models.llama.modeling_llama import NeuronLlamaForCausalLM, NeuronLlamaModel
from neuronx_distributed_inference.models.qwen3.modeling_qwen3 import NeuronQwen3ForCausalLM, NeuronQwen3Model

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi import guard
from nxdi_svd_plugin.nxdi.config import (
    SvdLlamaInferenceConfig,
    SvdQwen3InferenceConfig,
    check_config,
    factored_layers,
)
from nxdi_svd_plugin.nxdi.low_rank import share_out
from nxdi_svd_plugin.nxdi.mlp import SvdMLP
from nxdi_svd_plugin.nxdi.state_dict import check_mlp_tensors

logger = logging.getLogger(__name__)
guard.install()


@contextmanager
def tiny_dense_mlps(config: Any) -> Iterator[None]:
    """Let NxDI build its dense MLPs one channel wide: they are thrown away, and at full size would cost the memory."""
    intermediate = config.intermediate_size
    config.intermediate_size = config.neuron_config.tp_degree
    try:
        yield
    finally:
        config.intermediate_size = intermediate


def replace_mlps(model: Any, config: Any) -> None:
    """Put an SvdMLP into every decoder layer.

    Raises:
        NxdiError: a layer has no `mlp`, so this NxDI builds its layers in a way the plugin does not know.
    """
    layers = factored_layers(config) or {}
    for index, layer in enumerate(model.layers):
        if not hasattr(layer, "mlp"):
            raise NxdiError(f"decoder layer {index} ({type(layer).__name__}) has no attribute 'mlp' to replace")
        layer.mlp = SvdMLP(config, layers[index], index)
    logger.info("mlp_impl=%r in %d decoder layers", config.neuron_config.mlp_impl, len(layers))


class NeuronSvdLlamaModel(NeuronLlamaModel):  # type: ignore[misc]
    """NeuronLlamaModel whose MLPs follow `mlp_impl`."""

    def init_model(self, config: Any) -> None:
        """Build the stock model, then replace its MLPs; stock if `mlp_impl` is "dense"."""
        if factored_layers(config) is None:
            super().init_model(config)
            return
        with tiny_dense_mlps(config):
            super().init_model(config)
        replace_mlps(self, config)


class NeuronSvdQwen3Model(NeuronQwen3Model):  # type: ignore[misc]
    """NeuronQwen3Model whose MLPs follow `mlp_impl`."""

    def init_model(self, config: Any) -> None:
        """Build the stock model, then replace its MLPs; stock if `mlp_impl` is "dense"."""
        if factored_layers(config) is None:
            super().init_model(config)
            return
        with tiny_dense_mlps(config):
            super().init_model(config)
        replace_mlps(self, config)


def load_factored(model_path: str, **kwargs: Any) -> Any:
    """The transformers model of a compressed directory, loaded strictly; None for another directory.

    kwargs: what NxDI passes to `from_pretrained`; only the dtype is meaningful for a local directory.
    """
    config = Path(model_path) / "config.json"
    if not config.is_file() or "svd_config" not in json.loads(config.read_text()):
        return None
    from nxdi_svd_plugin.modeling.load import load_pretrained

    return load_pretrained(model_path, dtype=kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto")


def prepare_checkpoint(state_dict: dict[str, Any], config: Any) -> None:
    """Check the MLP tensors against `mlp_impl`, and share interpolative layers out over the ranks."""
    layers = factored_layers(config)
    if layers is None:
        guard.refuse_factors(state_dict, "mlp_impl is 'dense' and the config was not made from this directory")
        return
    check_mlp_tensors(state_dict, layers, config)
    share_out(state_dict, layers, config.intermediate_size, config.neuron_config.tp_degree)


class NeuronSvdLlamaForCausalLM(NeuronLlamaForCausalLM):  # type: ignore[misc]
    """NeuronLlamaForCausalLM that serves a compressed directory with `mlp_impl="svd"` or `"svd_fused"`."""

    _model_cls = NeuronSvdLlamaModel
    reads_factors = True  # see guard.py

    @staticmethod
    def load_hf_model(model_path: str, **kwargs: Any) -> Any:
        """The golden model of NxDI's accuracy checks: transformers with the same factors, or NxDI's for a dense one."""
        golden = load_factored(model_path, **kwargs)
        return golden if golden is not None else NeuronLlamaForCausalLM.load_hf_model(model_path, **kwargs)

    @classmethod
    def get_config_cls(cls) -> type[SvdLlamaInferenceConfig]:
        """The InferenceConfig class; its neuron config knows `mlp_impl`."""
        return SvdLlamaInferenceConfig

    @classmethod
    def validate_config(cls, config: Any) -> None:
        """NxDI's checks and the plugin's, also for a stock config object that a caller passes in."""
        super().validate_config(config)
        check_config(config)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict[str, Any], config: Any) -> dict[str, Any]:
        """NxDI's conversion after the exact check of the MLP tensors."""
        prepare_checkpoint(state_dict, config)
        converted: dict[str, Any] = NeuronLlamaForCausalLM.convert_hf_to_neuron_state_dict(state_dict, config)
        return converted


class NeuronSvdQwen3ForCausalLM(NeuronQwen3ForCausalLM):  # type: ignore[misc]
    """NeuronQwen3ForCausalLM that serves a compressed directory with `mlp_impl="svd"` or `"svd_fused"`."""

    _model_cls = NeuronSvdQwen3Model
    reads_factors = True  # see guard.py

    @staticmethod
    def load_hf_model(model_path: str, **kwargs: Any) -> Any:
        """The golden model of NxDI's accuracy checks: transformers with the same factors, or NxDI's for a dense one."""
        golden = load_factored(model_path, **kwargs)
        return golden if golden is not None else NeuronQwen3ForCausalLM.load_hf_model(model_path, **kwargs)

    @classmethod
    def get_config_cls(cls) -> type[SvdQwen3InferenceConfig]:
        """The InferenceConfig class; its neuron config knows `mlp_impl`."""
        return SvdQwen3InferenceConfig

    @classmethod
    def validate_config(cls, config: Any) -> None:
        """NxDI's checks and the plugin's, also for a stock config object that a caller passes in."""
        super().validate_config(config)
        check_config(config)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict[str, Any], config: Any) -> dict[str, Any]:
        """NxDI's conversion after the exact check of the MLP tensors."""
        prepare_checkpoint(state_dict, config)
        converted: dict[str, Any] = NeuronQwen3ForCausalLM.convert_hf_to_neuron_state_dict(state_dict, config)
        return converted
