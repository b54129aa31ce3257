"""NxDI learns the plugin's classes: `register()` puts them into both of NxDI's MODEL_TYPES dicts.

NxDI has two such dicts, one that vLLM's loader reads (utils.constants) and one that inference_demo reads. Both are
changed in place, because loaders hold a reference. Importing them costs every model family, so `register()` waits until
somebody else imports them.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from nxdi_svd_plugin.import_hook import after_import
from nxdi_svd_plugin.nxdi import guard

MODULES = ("neuronx_distributed_inference.utils.constants", "neuronx_distributed_inference.inference_demo")
CLASSES = {"llama": "NeuronSvdLlamaForCausalLM", "qwen3": "NeuronSvdQwen3ForCausalLM"}


def keys(family: str) -> tuple[str, str, str]:
    """MODEL_TYPES keys of a family: NxDI's own, our model_type, and what vLLM makes of "SvdLlamaForCausalLM".

    Under NxDI's own key our class is the stock one as long as `mlp_impl` is unset.
    """
    return family, f"svd_{family}", f"svd{family}"


def register() -> None:
    """Make NxDI know svd_llama and svd_qwen3. May be called again; imports no NxDI, and does nothing without it."""
    guard.install()
    for name in MODULES:
        after_import(name, add_model_types)


def add_model_types(module: ModuleType) -> None:
    """Add the plugin's classes to `module.MODEL_TYPES`, in place."""
    models = import_module("nxdi_svd_plugin.nxdi.models")
    for family, class_name in CLASSES.items():
        for key in keys(family):
            module.MODEL_TYPES.setdefault(key, {})["causal-lm"] = getattr(models, class_name)
