"""The `vllm.general_plugins` entry point: vLLM on Neuron (SDK 2.27, 2.28) serves a compressed directory.

vLLM calls `register` once in each of its processes. It resolves the architecture name of config.json in its own
registry first, and vllm-neuron then in NxDI's MODEL_TYPES ("SvdLlamaForCausalLM" -> "svdllama").
"""

from __future__ import annotations

import importlib
import importlib.util

from nxdi_svd_plugin.nxdi import upstream
from nxdi_svd_plugin.nxdi.registration import register as register_with_nxdi

# vLLM asks these classes for a model's properties only; on Neuron the model that runs is NxDI's.
ARCHITECTURES = {
    "SvdLlamaForCausalLM": "vllm.model_executor.models.llama:LlamaForCausalLM",
    "SvdQwen3ForCausalLM": "vllm.model_executor.models.qwen3:Qwen3ForCausalLM",
}


def register() -> None:
    """Register with NxDI and with vLLM's model registry; idempotent, cheap, and nothing at all without NxDI."""
    if not upstream.installed():
        return
    register_with_nxdi()
    if importlib.util.find_spec("vllm") is None:
        return
    registry = importlib.import_module("vllm").ModelRegistry
    known = set(registry.get_supported_archs())
    for architecture, path in ARCHITECTURES.items():
        if architecture not in known:
            registry.register_model(architecture, path)
