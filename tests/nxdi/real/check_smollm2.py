"""SmolLM2-135M with truncated factors in every MLP: logits and greedy tokens against transformers, tp 1 and 2.

And in groups, at tp 1, 2 and 4, with factors of full rank: the dense model is the reference.
"""

import json

import pytest
import ranks
import torch
from cpu_models import dense_reference, reference_logits, run_model
from safetensors.torch import load_file
from tiny_models import save_compressed, save_factored
from zero_heads import add_zero_heads

pytestmark = pytest.mark.slow
STEPS = 8
RANK = 512  # of 576: greedy decoding does not degenerate


@pytest.fixture(scope="module")
def dense(smollm2, tmp_path_factory):
    return add_zero_heads(smollm2, tmp_path_factory.mktemp("smollm2") / "dense")


@pytest.fixture(scope="module")
def compressed(dense):
    return save_factored(dense, dense.parent / "svd", RANK)


def save_rotated(dense, directory, groups):
    """Every slice of every MLP weight as a rotation of the hidden side, one for each group, and the rest."""
    config, tensors = json.loads((dense / "config.json").read_text()), load_file(dense / "model.safetensors")
    hidden, width = config["hidden_size"], config["intermediate_size"]
    torch.manual_seed(0)
    near = [torch.linalg.qr(torch.randn(hidden, hidden))[0] for _ in range(groups)]
    pair = {"form": "pair", "rank": groups * hidden}
    layers = {i: {"width": width, "gate_proj": pair, "up_proj": pair, "down_proj": pair} for i in range(30)}
    for key in [key for key in tensors if ".mlp." in key]:
        stem, down = key.removesuffix(".weight"), "down_proj" in key
        weight = tensors.pop(key) if down else tensors.pop(key).T  # [H, I]
        far = torch.cat([q.T @ part for q, part in zip(near, weight.chunk(groups, 1), strict=True)], 1)
        factors = (far.T, torch.cat(near, 1).T) if down else (torch.cat(near, 1), far)
        tensors[f"{stem}.u"], tensors[f"{stem}.v"] = (factor.contiguous() for factor in factors)
    return save_compressed(dense, directory, tensors, layers, groups)


@pytest.fixture(scope="module")
def in_groups(dense):
    """(reference, directories by groups)"""
    made = {groups: save_rotated(dense, dense.parent / f"svd{groups}", groups) for groups in (2, 4)}
    return dense_reference(dense, "llama"), made


@pytest.mark.parametrize(("groups", "tp"), [(2, 1), (2, 2), (2, 4), (4, 2)])
def test_smollm2_in_groups_equals_transformers(groups, tp, smollm2, in_groups):
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(smollm2)("The capital of France is", return_tensors="pt").input_ids
    reference, directories = in_groups
    options = {"mlp_impl": "svd_fused" if tp == groups else "svd", "tp_degree": tp}
    results = ranks.run(tp, run_model, "llama", directories[groups], prompt, 3, **options)
    expected = reference_logits(reference, results[0]["tokens"], prompt.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
        assert torch.equal(found["logits"].argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(("tp", "mlp_impl"), [(1, "svd"), (2, "svd"), (2, "svd_fused")])
def test_smollm2_equals_transformers(tp, mlp_impl, smollm2, compressed):
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(smollm2)("The capital of France is", return_tensors="pt").input_ids
    options = {"mlp_impl": mlp_impl, "tp_degree": tp, "adapter": tp == 1}
    results = ranks.run(tp, run_model, "llama", compressed, prompt, STEPS, **options)
    reference = dense_reference(compressed, "llama")
    expected = reference_logits(reference, results[0]["tokens"], prompt.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5 * expected.abs().max())
        assert torch.equal(found["logits"].argmax(-1), expected.argmax(-1))
    if tp == 1:
        assert results[0]["generated"].tolist() == results[0]["tokens"].tolist()
