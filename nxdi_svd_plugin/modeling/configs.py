"""Configurations of the compressed models: the dense ones with another model_type and the object `svd_config`.

transformers keeps an unknown key of config.json as an attribute, so `svd_config` needs no field of its own.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from nxdi_svd_plugin.checkpoint.source import as_known_here
from nxdi_svd_plugin.checkpoint.spellings import config_for_both
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import Layers, parse_layers


class BothSpellings:
    """Mixin before a config of transformers: config.json may be that of transformers 4 or of 5 (spellings.py)."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            CheckpointError: the spellings contradict each other.
        """
        return super().from_dict(as_known_here(config_for_both(config_dict)), **kwargs)  # type: ignore[misc]


class SvdLlamaConfig(BothSpellings, LlamaConfig):
    """LlamaConfig with `svd_config`, see docs/format.md."""

    model_type = "svd_llama"


class SvdQwen3Config(BothSpellings, Qwen3Config):
    """Qwen3Config with `svd_config`, see docs/format.md."""

    model_type = "svd_qwen3"


def layers_of(config: PretrainedConfig) -> Layers:
    """What every layer stores.

    Raises:
        CheckpointError: no svd_config, one that does not fit the config, or biases in the MLP.
    """
    svd_config = getattr(config, "svd_config", None)
    if not isinstance(svd_config, dict):
        raise CheckpointError(
            f"a {config.model_type} config needs the object svd_config, found {svd_config!r}; "
            "compress the dense model with `nxdi-svd compress`"
        )
    if getattr(config, "mlp_bias", False):
        raise CheckpointError("mlp_bias is true: low-rank projections have no biases; set it to false")
    return parse_layers(svd_config, config.num_hidden_layers, config.intermediate_size)
