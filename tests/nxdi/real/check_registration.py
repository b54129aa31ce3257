"""`register()`: both MODEL_TYPES dicts in place, whenever they are imported; the vLLM entry point."""

import sys
import types

import pytest
import ranks

from nxdi_svd_plugin.nxdi.registration import MODULES


def register_then_import():
    from nxdi_svd_plugin.nxdi import register

    register()
    register()
    before = [name for name in MODULES if name in sys.modules]
    from neuronx_distributed_inference import inference_demo
    from neuronx_distributed_inference.utils import constants

    found = [
        {key: types["causal-lm"].__name__ for key, types in dictionary.items() if "causal-lm" in types}
        for dictionary in (inference_demo.MODEL_TYPES, constants.MODEL_TYPES)
    ]
    return before, found


def import_then_register():
    from neuronx_distributed_inference import inference_demo
    from neuronx_distributed_inference.utils import constants

    dictionaries = (inference_demo.MODEL_TYPES, constants.MODEL_TYPES)
    from nxdi_svd_plugin.nxdi import register

    register()
    register()
    return [], [
        {key: types["causal-lm"].__name__ for key, types in dictionary.items() if "causal-lm" in types}
        for dictionary in dictionaries
    ]


@pytest.mark.parametrize("order", [register_then_import, import_then_register])
def test_both_dicts_know_our_classes(order):
    [(before, found)] = ranks.run(1, order)
    assert not before
    for names in found:
        for family, expected in (("llama", "NeuronSvdLlamaForCausalLM"), ("qwen3", "NeuronSvdQwen3ForCausalLM")):
            assert {names[family], names[f"svd_{family}"], names[f"svd{family}"]} == {expected}
        assert names["mixtral"] == "NeuronMixtralForCausalLM"


def vllm_registry():
    registered = {}

    class ModelRegistry:
        @staticmethod
        def get_supported_archs():
            return ["LlamaForCausalLM", *registered]

        @staticmethod
        def register_model(architecture, path):
            assert architecture not in registered
            registered[architecture] = path

    module = types.ModuleType("vllm")
    module.ModelRegistry = ModelRegistry
    module.__spec__ = types.SimpleNamespace(name="vllm")
    sys.modules["vllm"] = module
    from nxdi_svd_plugin.nxdi.vllm import register

    register()
    register()
    return registered


def test_vllm_learns_the_architectures_once():
    [registered] = ranks.run(1, vllm_registry)
    assert set(registered) == {"SvdLlamaForCausalLM", "SvdQwen3ForCausalLM"}
