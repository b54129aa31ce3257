"""Llama and Qwen3 whose MLPs are stored as config.json's svd_config says."""

from __future__ import annotations

from typing import Any

from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from nxdi_svd_plugin.modeling.configs import SvdLlamaConfig, SvdQwen3Config, layers_of
from nxdi_svd_plugin.modeling.low_rank_linear import install_low_rank
from nxdi_svd_plugin.modeling.strict import StrictLoading


class StoredMlps(StrictLoading):
    """Mixin before a causal language model of transformers: its MLP projections have the forms of `config.svd_config`.

    `_init_weights` is transformers' own: overriding it makes 5.x draw loaded weights anew (transformers#46620).

    Raises:
        CheckpointError: svd_config is missing or does not fit the config.
    """

    def __init__(self, config: Any) -> None:
        layers = layers_of(config)
        super().__init__(config)  # type: ignore[call-arg]
        model: Any = self
        install_low_rank({i: layer.mlp for i, layer in enumerate(model.model.layers)}, layers, config.hidden_size)
        model.post_init()

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers runs custom_generate/generate.py of a directory when it loads the model; here there is none."""
        raise OSError("code that a checkpoint brings is not run")


class SvdLlamaForCausalLM(StoredMlps, LlamaForCausalLM):  # type: ignore[misc, no-untyped-call]
    """LlamaForCausalLM with stored MLPs."""

    config_class = SvdLlamaConfig


class SvdQwen3ForCausalLM(StoredMlps, Qwen3ForCausalLM):  # type: ignore[misc, no-untyped-call]
    """Qwen3ForCausalLM with stored MLPs."""

    config_class = SvdQwen3Config
