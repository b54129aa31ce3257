"""NxDI's Llama and Qwen3 with stored MLPs, by the smallest set of overrides that fits NxDI 0.6 to 0.9.

The decoder layers are NxDI's own; after they are built, each layer's `mlp` is replaced. With `mlp_impl="dense"` the
classes are the stock ones.
"""

from __future__ import annotations

import functools
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
from nxdi_svd_plugin.nxdi.config import SvdLlamaInferenceConfig, SvdQwen3InferenceConfig, check_config, stored_layers
from nxdi_svd_plugin.nxdi.mlp import SvdMLP
from nxdi_svd_plugin.nxdi.state_dict import check_mlp_tensors, share_out
from nxdi_svd_plugin.nxdi.weight_layout import spare_kernel_weights
from nxdi_svd_plugin.stored.cores import repeated, sharing
from nxdi_svd_plugin.stored.layers import Layers, groups_of

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


def replace_mlps(model: Any, layers: Layers, config: Any) -> None:
    """Put an SvdMLP into every decoder layer.

    Raises:
        NxdiError: a layer has no `mlp`, so this NxDI builds its layers in a way the plugin does not know.
    """
    for index, layer in enumerate(model.layers):
        if not hasattr(layer, "mlp"):
            raise NxdiError(f"decoder layer {index} ({type(layer).__name__}) has no attribute 'mlp' to replace")
        layer.mlp = SvdMLP(config, layers[index], index)
    logger.info("mlp_impl=%r in %d decoder layers", config.neuron_config.mlp_impl, len(layers))
    announce_repeated(layers, config)


def announce_repeated(layers: Layers, config: Any) -> None:
    """Log once what it costs that several ranks share a group, where they do."""
    neuron_config = config.neuron_config
    groups, degree = groups_of(layers), neuron_config.tp_degree
    if numbers := repeated(layers, config.hidden_size, degree):
        cores = sharing(groups, degree).cores
        announce(
            f"tp_degree={degree} on MLPs in {groups} group{'s' * (groups > 1)}: the hidden-side factors of a group are "
            f"whole on {cores} cores, {numbers * neuron_config.torch_dtype.itemsize} bytes per core beyond its share; "
            f"compress with --tp-degree {degree} to split them"
        )


@functools.cache
def announce(message: str) -> None:
    """Log once; every submodel is built."""
    logger.warning(message)


class StoredMlps:
    """Mixin before a model of NxDI: its MLPs follow `mlp_impl`."""

    def init_model(self, config: Any) -> None:
        """Build the stock model, then replace its MLPs; stock if `mlp_impl` is "dense"."""
        stock, layers = super().init_model, stored_layers(config)  # type: ignore[misc]
        if layers is None:
            stock(config)
            return
        with tiny_dense_mlps(config):
            stock(config)
        replace_mlps(self, layers, config)


class NeuronSvdLlamaModel(StoredMlps, NeuronLlamaModel):  # type: ignore[misc]
    """NeuronLlamaModel whose MLPs follow `mlp_impl`."""


class NeuronSvdQwen3Model(StoredMlps, NeuronQwen3Model):  # type: ignore[misc]
    """NeuronQwen3Model whose MLPs follow `mlp_impl`."""


def load_compressed(model_path: str, **kwargs: Any) -> Any:
    """The transformers model of a compressed directory, loaded strictly; None for another directory.

    kwargs: what NxDI passes to `from_pretrained`; only the dtype is meaningful for a local directory.
    """
    config = Path(model_path) / "config.json"
    if not config.is_file() or "svd_config" not in json.loads(config.read_text()):
        return None
    from nxdi_svd_plugin.modeling.load import load_pretrained

    return load_pretrained(model_path, dtype=kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto")


def prepare_checkpoint(state_dict: dict[str, Any], config: Any) -> None:
    """Check the MLP tensors against `mlp_impl`, and share groups out that are on several ranks."""
    layers = stored_layers(config)
    if layers is None:
        guard.refuse_factors(state_dict, "mlp_impl is 'dense' and the config was not made from this directory")
        return
    check_mlp_tensors(state_dict, layers, config.hidden_size)
    share_out(state_dict, layers, config.neuron_config.tp_degree)


class ServesStoredMlps:
    """Mixin before an application of NxDI: it serves a compressed directory with `mlp_impl="svd"` or `"svd_fused"`.

    NxDI looks all of these up on the class; what are static methods there are class methods here, to reach the stock
    ones through `super()`.
    """

    reads_factors = True  # see guard.py
    _config_cls: type[Any]

    def get_builder(self, debug: bool = False) -> Any:
        """NxDI's builder, which compiles the model; the kernels' weights keep their layout."""
        config: Any = self.config  # type: ignore[attr-defined]
        spare_kernel_weights(config.neuron_config, stored_layers(config))
        return super().get_builder(debug)  # type: ignore[misc]

    @classmethod
    def load_hf_model(cls, model_path: str, **kwargs: Any) -> Any:
        """The golden model of NxDI's accuracy checks: transformers with the same factors, or NxDI's for a dense one."""
        golden = load_compressed(model_path, **kwargs)
        return golden if golden is not None else super().load_hf_model(model_path, **kwargs)  # type: ignore[misc]

    @classmethod
    def get_config_cls(cls) -> type[Any]:
        """The InferenceConfig class; its neuron config knows `mlp_impl`."""
        return cls._config_cls

    @classmethod
    def validate_config(cls, config: Any) -> None:
        """NxDI's checks and the plugin's, also for a stock config object that a caller passes in."""
        super().validate_config(config)  # type: ignore[misc]
        check_config(config)

    @classmethod
    def convert_hf_to_neuron_state_dict(cls, state_dict: dict[str, Any], config: Any) -> dict[str, Any]:
        """NxDI's conversion after the exact check of the MLP tensors."""
        prepare_checkpoint(state_dict, config)
        convert = super().convert_hf_to_neuron_state_dict  # type: ignore[misc]
        converted: dict[str, Any] = convert(state_dict, config)
        return converted


class NeuronSvdLlamaForCausalLM(ServesStoredMlps, NeuronLlamaForCausalLM):  # type: ignore[misc]
    """NeuronLlamaForCausalLM that serves a compressed directory."""

    _model_cls, _config_cls = NeuronSvdLlamaModel, SvdLlamaInferenceConfig


class NeuronSvdQwen3ForCausalLM(ServesStoredMlps, NeuronQwen3ForCausalLM):  # type: ignore[misc]
    """NeuronQwen3ForCausalLM that serves a compressed directory."""

    _model_cls, _config_cls = NeuronSvdQwen3Model, SvdQwen3InferenceConfig
