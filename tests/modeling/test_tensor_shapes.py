"""Names and shapes that checkpoint/tensors.py derives from config.json alone are those of transformers' own classes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.checkpoint.tensors import all_tensors, expected_tensors, parameters

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 259,
    "pad_token_id": None,
}
CASES = [
    {"model_type": "llama"},
    {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 12},
    {"model_type": "llama", "num_key_value_heads": None, "head_dim": None, "attention_bias": True},
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "qwen3", "num_attention_heads": 32},  # a Qwen3 has defaults of its own: 32 key heads of 128
    {"model_type": "qwen3", "num_key_value_heads": None, "head_dim": 6, "attention_bias": True},
    {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_are_those_of_transformers(case, tmp_path):
    raw = {**SIZES, **case}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    settings = {key: value for key, value in raw.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw["model_type"], **settings))
    assert all_tensors(config) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    tied = bool(raw.get("tie_word_embeddings"))
    assert ("lm_head.weight" in expected_tensors(config)) is not tied
