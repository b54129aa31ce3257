"""Repairs of upstream NxDI that its CPU path needs, each made only where the defect is present.

0.7 and 0.8 as published refer to a tensor-capture hook that is not in the export: `_get_captured_tensors_offset` and
the name `tensor_capture_hook` are undefined. 0.6 and 0.9 need nothing (0.6 with transformers 4.51).
"""

from __future__ import annotations

import functools
import inspect


def apply() -> list[str]:
    """Repair what is broken; returns the names of the repairs."""
    from neuronx_distributed_inference.models.model_base import NeuronBaseForCausalLM
    from neuronx_distributed_inference.utils import hf_adapter

    done = []
    name = "_get_captured_tensors_offset"
    if name in inspect.getsource(NeuronBaseForCausalLM) and not hasattr(NeuronBaseForCausalLM, name):
        NeuronBaseForCausalLM._get_captured_tensors_offset = lambda self: 0
        done.append(name)
    prepare = hf_adapter.HuggingFaceGenerationAdapter.prepare_inputs_for_generation
    source = inspect.getsource(prepare)
    if '"tensor_capture_hook": tensor_capture_hook' in source and "tensor_capture_hook =" not in source:
        hf_adapter.tensor_capture_hook = None
        accepted = "tensor_capture_hook" in inspect.signature(NeuronBaseForCausalLM.forward).parameters
        hf_adapter.HuggingFaceGenerationAdapter.prepare_inputs_for_generation = _without_hook(prepare, accepted)
        done.append("tensor_capture_hook")
    return done


def _without_hook(prepare, accepted):
    @functools.wraps(prepare)  # transformers reads the signature to validate generate()'s arguments
    def wrapper(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        if not accepted:
            inputs.pop("tensor_capture_hook", None)
        return inputs

    return wrapper
