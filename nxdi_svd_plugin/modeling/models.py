"""Llama with factored MLPs."""

from __future__ import annotations

from transformers import LlamaForCausalLM

from nxdi_svd_plugin.modeling.configs import SvdLlamaConfig, layers_of
from nxdi_svd_plugin.modeling.factored_linear import install_factors
from nxdi_svd_plugin.modeling.strict import StrictLoading


class SvdLlamaForCausalLM(StrictLoading, LlamaForCausalLM):  # type: ignore[misc, no-untyped-call]
    """LlamaForCausalLM whose MLP projections have the forms and ranks of `config.svd_config`.

    `_init_weights` is transformers' own: overriding it makes 5.x draw loaded weights anew (transformers#46620).

    Raises:
        CheckpointError: svd_config is missing or does not fit the config.
    """

    config_class = SvdLlamaConfig

    def __init__(self, config: SvdLlamaConfig) -> None:
        layers = layers_of(config)
        super().__init__(config)  # type: ignore[no-untyped-call]
        install_factors({i: layer.mlp for i, layer in enumerate(self.model.layers)}, layers)
        self.post_init()  # type: ignore[no-untyped-call]
