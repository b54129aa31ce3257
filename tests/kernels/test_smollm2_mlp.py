"""The kernels on a layer of SmolLM2: its weights, factored, and its activations, against numpy float64."""

import ml_dtypes
import numpy as np
import pytest
import torch
from kernel_cases import assert_close, run

LAYER, RANK = 7, 384


def truncated(weight):
    """u, v of the rank-RANK SVD of a torch weight [out, in]."""
    left, values, right = np.linalg.svd(weight.T, full_matrices=False)
    root = np.sqrt(values[:RANK])
    return (left[:, :RANK] * root).astype(ml_dtypes.bfloat16), (root[:, None] * right[:RANK]).astype(ml_dtypes.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 8, 150])
def test_the_mlp_of_a_layer_on_real_activations(smollm2, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    mlp, seen = model.model.layers[LAYER].mlp, []
    mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    text = "The tensor engine multiplies matrices; everything else has to keep up with it. " * 20
    with torch.no_grad():
        model(AutoTokenizer.from_pretrained(smollm2)(text, return_tensors="pt").input_ids[:, :tokens])
    x = seen[0].numpy().astype(ml_dtypes.bfloat16)
    gate, up, down = (
        truncated(getattr(mlp, f"{name}_proj").weight.detach().numpy()) for name in ("gate", "up", "down")
    )
    h_t, _, truth, low = run("up_gate", x, [gate, up])
    assert_close(h_t, truth, low)
    y, _, truth, low = run("down", h_t, [down])
    assert_close(y, truth, low)
    assert y.shape == (tokens, 576)
