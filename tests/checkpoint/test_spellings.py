"""config.json in the spellings of transformers 4 and 5: translated where one is missing, refused where they differ."""

import json

import pytest

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.source import read_raw
from nxdi_svd_plugin.checkpoint.spellings import config_for_both, tokenizer_config_for_both
from nxdi_svd_plugin.errors import CheckpointError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PAIRS = {
    "plain": (
        {"rope_theta": 1e5, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    ),
    "scaled": ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
    "the old name": (
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "type": "linear", "factor": 2.0}},
    ),
    "dtype": ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
}
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "dtype", "torch_dtype")


@pytest.mark.parametrize("case", PAIRS)
def test_both_spellings_come_out_of_either(case):
    old, new = PAIRS[case]
    from_old, from_new = config_for_both({"a": 1, **old}), config_for_both({"a": 1, **new})
    assert from_old == from_new == config_for_both(from_old)
    for spelling in (old, new):
        for key in spelling:
            wanted = spelling[key]
            if isinstance(wanted, dict):
                wanted = {k: v for k, v in wanted.items() if k != "type"}
            found = from_old[key]
            if key == "rope_scaling" and found:
                found, wanted = ({**x, "rope_type": x.get("rope_type", "linear")} for x in (found, wanted))
            assert found == wanted


def test_defaults_that_both_share_stay_unsaid():
    assert config_for_both({"hidden_size": 4}) == {"hidden_size": 4}
    assert config_for_both({"rope_scaling": {"rope_type": "default"}}).get("rope_theta") is None


def test_the_given_object_is_not_shared():
    raw = {"rope_theta": 1e5, "rope_scaling": dict(LLAMA3)}
    config_for_both(raw)["rope_parameters"]["factor"] = 3
    config_for_both(raw)["rope_scaling"]["factor"] = 3
    assert raw == {"rope_theta": 1e5, "rope_scaling": LLAMA3}


NEW = {"rope_theta": 1e5, "rope_type": "default"}
REFUSED = {
    "another base": ({"rope_theta": 1e4, "rope_parameters": NEW}, "rope_theta, .* is 10000.0, .* 100000.0"),
    "another scaling": ({"rope_scaling": LLAMA3, "rope_parameters": NEW}, "rope_scaling, which transformers 4 reads"),
    "another dtype": ({"torch_dtype": "float16", "dtype": "bfloat16"}, "torch_dtype.*'float16'.*'bfloat16'"),
    "a dtype with its module": (
        {"torch_dtype": "torch.float16"},
        "torch_dtype is 'torch.float16'; expected one of float32",
    ),
    "an unknown RoPE": ({"rope_scaling": {"type": "magic"}}, "rope_type is 'magic'; expected one of default"),
    "one RoPE a layer type": ({"rope_parameters": {"full_attention": NEW}}, "one object for all layers"),
    "a list": ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
    "a base that is no number": ({"rope_theta": "1e4"}, "rope_theta is '1e4'; expected a positive number"),
    "a base of 0": ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; expected a positive"),
    "a part of a head": ({"partial_rotary_factor": 0.5, "rope_theta": 1e4}, "partial_rotary_factor is 0.5"),
    "a part of a head, 5": ({"rope_parameters": {**NEW, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "windows that only 5 sees": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True},
        "has 1 sliding layers; use_sliding_window, .* make 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_two_would_read_differently_is_refused(case, tmp_path):
    raw, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        config_for_both(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        read_raw(tmp_path)


def test_windows_that_both_see_are_fine():
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    config = {"model_type": "qwen3", "layer_types": kinds, "use_sliding_window": True, "max_window_layers": 2}
    assert config_for_both(config) == config


def test_keys_that_name_code_or_kernels_are_gone():
    raw = {"auto_map": {"AutoModel": "evil.Model"}, "attn_implementation": "org/kernel", "hidden_size": 4}
    assert config_for_both({**raw, "_attn_implementation": "flash_attention_2"}) == {"hidden_size": 4}


def test_a_tokenizer_config_that_both_read(tmp_path):
    saved = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<x>"]}
    readable = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"]}
    assert tokenizer_config_for_both({**saved, "auto_map": {}}) == {"backend": "tokenizers", **readable}
    (tmp_path / "tokenizer.json").write_text("as it is")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved))
    files = carried(tmp_path)
    assert json.loads(files["tokenizer_config.json"]) == {"backend": "tokenizers", **readable}
    assert files["tokenizer.json"] == b"as it is"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class":  "LlamaTokenizer"}')
    assert carried(tmp_path)["tokenizer_config.json"] == b'{"tokenizer_class":  "LlamaTokenizer"}'  # byte for byte
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        carried(tmp_path)
