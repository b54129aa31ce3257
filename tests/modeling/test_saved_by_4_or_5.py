"""Directories written by transformers 4 and 5 are the same models to us, and nothing that they bring is run.

test_compat.py runs this file under every transformers version.
"""

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from tiny_models import save_dense
from transformers import AutoModelForCausalLM

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.auto import register
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

IDS = torch.arange(3, 60)[None]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
THETA = 3e5


def frequencies(scaling, size=12):
    """RoPE's inverse frequencies: theta^(-2 i / d), scaled as the papers of linear scaling and Llama 3.1 say."""
    plain = THETA ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return plain / scaling["factor"]
    turns = 64 * plain / (2 * math.pi)  # over the original context
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    return (1 - smooth) * plain / 8.0 + smooth * plain


def respelled(source, target, scaling, spelling):
    """A copy of a directory whose config.json is that of transformers 4 or 5."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "dtype", "torch_dtype"):
        config.pop(key, None)
    if spelling == 4:
        config |= {"rope_theta": THETA, "rope_scaling": scaling, "torch_dtype": "float32"}
    else:
        config |= {"rope_parameters": {"rope_theta": THETA, **(scaling or {"rope_type": "default"})}}
        config |= {"dtype": "float32", "transformers_version": "5.23.0"}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["plain", "linear", "llama3"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "svd_llama"])
def test_a_config_of_either_version_is_one_model(family, scaling, tmp_path, request):
    if family == "svd_llama":
        source = request.getfixturevalue("tiny_svd_llama")
    else:
        source = save_dense(tmp_path / "source", family)
    models = [load_model(respelled(source, tmp_path / str(v), scaling, v)) for v in (4, 5)]
    for model in models:
        found = model.model.rotary_emb.inv_freq.numpy()
        np.testing.assert_allclose(found, frequencies(scaling), rtol=1e-6)  # float32
    with torch.no_grad():
        assert torch.equal(*(model(IDS).logits for model in models))


def test_auto_classes_read_either_version_of_a_compressed_config(tiny_svd_llama, tmp_path):
    register()
    for version in (4, 5):
        directory = respelled(tiny_svd_llama, tmp_path / str(version), LINEAR, version)
        found = AutoModelForCausalLM.from_pretrained(directory).model.rotary_emb.inv_freq.numpy()
        np.testing.assert_allclose(found, frequencies(LINEAR), rtol=1e-6)


def saved_by_5(source, target, **changes):
    """A copy whose tokenizer_config.json is what transformers 5 writes, with one special token more."""
    shutil.copytree(source, target)
    core = json.loads((source / "tokenizer.json").read_text())
    core["added_tokens"].append({**core["added_tokens"][0], "id": 259, "content": "<x>"})
    (target / "tokenizer.json").write_text(json.dumps(core))
    config = {"backend": "tokenizers", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], **changes}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    (target / "special_tokens_map.json").unlink(missing_ok=True)
    return target


def test_a_tokenizer_saved_by_5(tiny_llama, tmp_path):
    tokenizer = load_tokenizer(saved_by_5(tiny_llama, tmp_path / "new"))
    plain = load_tokenizer(tiny_llama)
    ids = tokenizer("a <x>wörld</s>", add_special_tokens=False)["input_ids"]
    assert ids == plain("a ")["input_ids"] + [259] + plain("wörld</s>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a wörld"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)


def test_a_tokenizer_of_a_class_that_4_does_not_have(tiny_llama, tmp_path):
    directory = saved_by_5(tiny_llama, tmp_path / "new", tokenizer_class="SomethingOf5")
    try:
        assert load_tokenizer(directory)("ab")["input_ids"]
    except CheckpointError as error:
        assert "was saved by transformers 5, and transformers 4." in str(error)


EVIL = "from pathlib import Path\nPath('{}').touch()\nclass Evil:\n    pass\ndef generate(*args, **kwargs):\n    pass\n"


@pytest.fixture
def evil(tiny_svd_llama, tmp_path, monkeypatch):
    """A compressed directory with code in every place that transformers looks at, and whoever asks is told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "evil")
    for name in ("evil.py", "custom_generate/generate.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(EVIL.format(tmp_path / "ran"))
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": "evil.Evil"}
    (directory / "config.json").write_text(json.dumps(config))
    yield directory
    assert not (tmp_path / "ran").exists()


def name_tokenizer(directory, name):
    path = directory / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "tokenizer_class": name, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))


def test_a_tokenizer_that_is_code_is_refused(evil):
    name_tokenizer(evil, "Evil")
    with pytest.raises(CheckpointError, match="is code of its own .*no code of a checkpoint is run"):
        load_tokenizer(evil)


def test_code_beside_a_readable_tokenizer_is_not_run(evil, tiny_llama, caplog):
    name_tokenizer(evil, "PreTrainedTokenizerFast")
    with caplog.at_level(logging.WARNING, "nxdi_svd_plugin"):
        assert load_tokenizer(evil)("ab")["input_ids"] == load_tokenizer(tiny_llama)("ab")["input_ids"]
    assert "code of its own (auto_map), which is not run" in caplog.text


def test_the_code_of_a_compressed_directory_is_not_run(evil):
    register()
    with pytest.raises(CheckpointError, match="brings code of its own .*generate.py"):
        load_model(evil)
    model = AutoModelForCausalLM.from_pretrained(evil)
    assert model.generate(IDS, max_new_tokens=1, do_sample=False).shape == (1, IDS.shape[1] + 1)
    shutil.rmtree(evil / "custom_generate")
    assert torch.equal(load_model(evil)(IDS).logits, model(IDS).logits)


def test_the_code_of_a_dense_directory_is_not_run(evil, tiny_llama):
    shutil.copytree(tiny_llama, evil, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="brings code of its own .*generate.py"):
        load_model(evil)
