"""Logits and tokens of the NxDI model with factors against transformers with the same factors."""

import pytest
import ranks
import torch
from cpu_models import dense_reference, reference_logits, run_model
from tiny_models import save_dense, save_factored

PROMPT = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
STEPS = 6


@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tp1_equals_transformers(family, mlp_impl, request):
    directory = request.getfixturevalue(f"svd_{family}")
    [found] = ranks.run(1, run_model, family, directory, PROMPT, STEPS, adapter=True, mlp_impl=mlp_impl)
    expected = reference_logits(dense_reference(directory, family), found["tokens"], PROMPT.shape[1])
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
    assert found["generated"].tolist() == found["tokens"].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_parallel_enabled": True, "is_continuous_batching": True},
        {"fused_qkv": True, "vocab_parallel": True},
        {"rpl_reduce_dtype": torch.float64},
        {"enable_bucketing": True, "context_encoding_buckets": [48], "is_continuous_batching": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_tp2_equals_transformers(family, options, request):
    if family == "qwen3" and "fused_qkv" in options:
        pytest.skip("stock NxDI has no fused_qkv conversion for Qwen3")
    directory = request.getfixturevalue(f"svd_{family}")
    results = ranks.run(2, run_model, family, directory, PROMPT, STEPS, mlp_impl="svd", tp_degree=2, **options)
    expected = reference_logits(dense_reference(directory, family), results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("tp", [1, 2])
def test_an_odd_intermediate_size_is_padded(tp, tmp_path):
    """I = 99 does not divide by 2: the last rank gets one channel of zeros."""
    dense = save_dense(tmp_path / "dense", "llama", intermediate_size=99, vocab_size=260)
    directory = save_factored(dense, tmp_path / "svd", 20, ((1, "down_proj"), (2, "gate_proj"), (2, "up_proj")))
    results = ranks.run(tp, run_model, "llama", directory, PROMPT, STEPS, adapter=True, mlp_impl="svd", tp_degree=tp)
    expected = reference_logits(dense_reference(directory, "llama"), results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
        assert found["generated"].tolist() == found["tokens"].tolist()
