"""The real loader of vllm-neuron 0.2.0 with vLLM stubbed: it resolves our classes, and mlp_impl reaches the MLP.

NXDI_SVD_VLLM_NEURON names a checkout of github.com/vllm-project/vllm-neuron (docs/nxdi.md); skipped without.
"""

import os
import sys
from types import SimpleNamespace

import neuron_stubs
import pytest
import ranks
import torch

SOURCES = os.environ.get("NXDI_SVD_VLLM_NEURON")
pytestmark = pytest.mark.skipif(not SOURCES, reason="NXDI_SVD_VLLM_NEURON is not set")


def import_loader():
    """vllm_neuron's loader, its own source, over stubs of vllm."""
    sys.path.insert(0, SOURCES)
    sys.meta_path.insert(0, neuron_stubs.StubFinder(("vllm",)))
    import vllm.model_executor.layers.logits_processor as logits_processor

    logits_processor.LogitsProcessor = torch.nn.Identity
    from vllm_neuron.worker import neuronx_distributed_model_loader as loader

    return loader


def load(directory, architecture, override, registered_first):
    from nxdi_svd_plugin.nxdi.registration import register

    if registered_first:
        register()
    loader = import_loader()
    register()
    loader.NeuronModelBase._load_compiled_model = raise_not_compiled
    loader.NeuronModelBase._compile_and_load_model = on_cpu
    loader.TORCH_DTYPE_TO_NEURON_AMP[torch.float32] = "float32"
    settings = {"architectures": [architecture], "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 260}
    config = SimpleNamespace(**settings, num_attention_heads=4, hidden_size=44)
    config.get_text_config = lambda: config
    model = loader.get_neuron_model(
        SimpleNamespace(hf_config=config, model=str(directory), dtype=torch.float32),
        SimpleNamespace(block_size=16, num_gpu_blocks_override=None, enable_prefix_caching=False),
        SimpleNamespace(tensor_parallel_size=1),
        SimpleNamespace(chunked_prefill_enabled=False, max_num_seqs=1, max_model_len=48, max_num_batched_tokens=48),
        None,
        additional_config={"override_neuron_config": override},
    )
    layer = model.model.models[0].model.layers[0]
    return type(model.model).__name__, model.neuron_config.mlp_impl, type(layer.mlp).__name__, layer.mlp.fit.up_gate


def raise_not_compiled(self, *args, **kwargs):
    raise FileNotFoundError("not compiled")


def on_cpu(self, model_path, neuronx_model_cls, config, compiled_path):
    """In place of the compiler and the device."""
    config.neuron_config.on_device_sampling_config = None
    self.model = neuronx_model_cls(model_path, config)
    self.model.to_cpu()


@pytest.mark.parametrize("registered_first", [True, False])
@pytest.mark.parametrize(("family", "name"), [("llama", "SvdLlamaForCausalLM"), ("qwen3", "SvdQwen3ForCausalLM")])
def test_the_loader_builds_our_model(family, name, registered_first, request):
    directory = request.getfixturevalue(f"svd_{family}")
    [found] = ranks.run(1, load, directory, name, {"mlp_impl": "svd_fused"}, registered_first)
    assert found == (f"Neuron{name}", "svd_fused", "SvdMLP", True)


def test_without_the_override_it_is_an_error_that_vllm_does_not_swallow(svd_llama):
    """The loader takes ValueError and FileNotFoundError for "not compiled yet"; ours is a RuntimeError."""
    with pytest.raises(ranks.RankError, match="NxdiError: the checkpoint is SVD-compressed"):
        ranks.run(1, load, svd_llama, "SvdLlamaForCausalLM", {}, True)
