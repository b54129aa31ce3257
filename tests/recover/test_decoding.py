"""One token's attention over shared heads against transformers' own, which copies the cache for every head."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nxdi_svd_plugin.recover.decoding import over_shared, shared_heads


@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (9, 3), (5, 1), (4, 4)])
@pytest.mark.parametrize("masked", ["none", "padded", "longer than the cache"])
def test_it_is_transformers_attention(heads, groups, masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, n, s, 7, generator=generator) for n, s in ((heads, 1), (groups, 13), (groups, 13))
    )
    mask = None
    if masked != "none":
        mask = torch.ones(3, 1, 1, 13 if masked == "padded" else 20, dtype=torch.bool)
        mask[1, ..., :4] = False
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True, training=False)
    cut = None if mask is None else mask[..., :13]  # transformers 4 does so itself
    expected, _ = usual(module, query, key, value, cut, dropout=0.0, scaling=0.3)
    found, _ = over_shared(usual)(module, query, key, value, mask, dropout=0.0, scaling=0.3)
    assert found.shape == expected.shape == (3, 1, heads, 7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_more_than_one_token_is_left_to_transformers():
    usual = lambda *args, **options: (args, options)  # noqa: E731
    query, key = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 2, 8)
    assert over_shared(usual)("module", query, key, key, None, scaling=1.0) == (
        ("module", query, key, key, None),
        {"scaling": 1.0},
    )


def test_a_model_generates_the_same_and_the_function_is_put_back():
    torch.manual_seed(3)
    sizes = {"hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2, head_dim=6)).eval()
    tokens, mask = torch.randint(1, 50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[2, :5] = 0
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    options = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    expected = model.generate(tokens, **options, return_dict_in_generate=True, output_logits=True)
    with shared_heads():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not usual
        found = model.generate(tokens, **options, return_dict_in_generate=True, output_logits=True)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is usual
    assert found.sequences.equal(expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-5)
