"""SmolLM2-135M with truncated factors in every MLP: logits and greedy tokens against transformers, tp 1 and 2."""

import pytest
import ranks
import torch
from cpu_models import dense_reference, reference_logits, run_model
from tiny_models import save_factored
from zero_heads import add_zero_heads

pytestmark = pytest.mark.slow
STEPS = 8
RANK = 512  # of 576: greedy decoding does not degenerate


@pytest.fixture(scope="module")
def compressed(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    return save_factored(add_zero_heads(smollm2, folder / "dense"), folder / "svd", RANK)


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
