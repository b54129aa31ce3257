"""NxD Inference (NxDI) with compressed MLPs: `mlp_impl="svd_fused"` in the neuron config, everything else as always.

Importing this package imports no NxDI; the first use of one of its names does, and says what is missing.
"""

from importlib import import_module
from typing import Any

from nxdi_svd_plugin.nxdi import upstream

_HOME = {
    "NeuronSvdLlamaForCausalLM": "nxdi_svd_plugin.nxdi.models",
    "NeuronSvdQwen3ForCausalLM": "nxdi_svd_plugin.nxdi.models",
    "register": "nxdi_svd_plugin.nxdi.registration",
}

__all__ = ["NeuronSvdLlamaForCausalLM", "NeuronSvdQwen3ForCausalLM", "register"]  # noqa: F822 (lazy)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    upstream.sdk()
    return getattr(import_module(_HOME[name]), name)
