"""load_pretrained: each way a directory can be wrong, and that plain from_pretrained refuses missing tensors too."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nxdi_svd_plugin
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

U = "model.layers.2.mlp.up_proj.u"


@pytest.fixture
def damaged(tiny_svd_llama, tmp_path):
    """A copy of tiny_svd_llama, and a function that rewrites its tensors or its config."""
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_svd_llama, directory)

    def damage(tensors=None, config=None):
        if tensors:
            loaded = load_file(directory / "model.safetensors")
            tensors(loaded)
            save_file(loaded, directory / "model.safetensors", metadata={"format": "pt"})
        if config:
            loaded = json.loads((directory / "config.json").read_text())
            config(loaded)
            (directory / "config.json").write_text(json.dumps(loaded))
        return directory

    return damage


def put(name, value):
    return lambda tensors: tensors.update({name: value})


TENSOR_FAULTS = [
    (lambda t: t.pop(U), r"missing: model\.layers\.2\.mlp\.up_proj\.u"),
    (lambda t: t.pop("model.norm.weight"), r"missing: model\.norm\.weight"),
    (put("model.layers.2.mlp.up_proj.weight", torch.zeros(90, 44)), r"unexpected: .*up_proj\.weight"),
    (put("extra", torch.zeros(3)), "unexpected: extra"),
    (put(U, torch.zeros(44, 21)), r"mismatched: .*up_proj\.u"),
    (put("model.norm.weight", torch.zeros(45)), r"mismatched: .*norm\.weight"),
]


@pytest.mark.parametrize(("fault", "message"), TENSOR_FAULTS)
def test_a_tensor_fault_is_refused_by_every_way_of_loading(damaged, fault, message):
    directory = damaged(tensors=fault)
    for load in (nxdi_svd_plugin.load_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(damaged, value):
    def poison(tensors):
        tensors[U][43, 19] = value

    with pytest.raises(CheckpointError, match=r"non-finite values in model\.layers\.2\.mlp\.up_proj\.u"):
        nxdi_svd_plugin.load_pretrained(damaged(tensors=poison))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda c: c.update(model_type="llama"), "is a dense llama model"),
        (lambda c: c.update(model_type="mixtral"), "model_type 'mixtral'; this version loads svd_llama, svd_qwen3"),
        (lambda c: c.pop("model_type"), "model_type None"),
        (lambda c: c.pop("svd_config"), "needs the object svd_config"),
        (lambda c: c["svd_config"]["layers"].pop("0"), "num_hidden_layers = 3"),
        (lambda c: c["svd_config"]["layers"]["2"]["up_proj"].update(rank=19), r"mismatched: .*up_proj"),
    ],
)
def test_a_config_fault_is_refused(damaged, fault, message):
    with pytest.raises(CheckpointError, match=message):
        nxdi_svd_plugin.load_pretrained(damaged(config=fault))


def test_damaged_or_missing_files_are_refused(damaged, tmp_path):
    directory = damaged()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        nxdi_svd_plugin.load_pretrained(directory)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        nxdi_svd_plugin.load_pretrained(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        nxdi_svd_plugin.load_pretrained(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        nxdi_svd_plugin.load_pretrained(directory)
    with pytest.raises(CheckpointError, match="is not a directory"):
        nxdi_svd_plugin.load_pretrained(tmp_path / "nowhere")


def test_a_pickle_checkpoint_is_refused(damaged):
    directory = damaged()
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model.bin is a pickle"):
        nxdi_svd_plugin.load_pretrained(directory)


def test_load_model_takes_both_kinds_and_no_other(tiny_qwen3, tiny_svd_qwen3, damaged):
    assert type(load_model(tiny_qwen3)).__name__ == "Qwen3ForCausalLM"
    assert type(load_model(tiny_svd_qwen3)).__name__ == "SvdQwen3ForCausalLM"
    with pytest.raises(CheckpointError, match="expected one of llama, qwen3, svd_llama, svd_qwen3"):
        load_model(damaged(config=lambda c: c.update(model_type="mixtral")))


def test_the_caller_still_gets_the_loading_info(tiny_svd_llama):
    model, info = AutoModelForCausalLM.from_pretrained(tiny_svd_llama, output_loading_info=True)
    assert type(model).__name__ == "SvdLlamaForCausalLM" and not info["missing_keys"]


def test_tokenizer(tiny_svd_llama, tmp_path):
    assert load_tokenizer(tiny_svd_llama)("ab")["input_ids"] != []
    shutil.copy(tiny_svd_llama / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_loading_draws_no_bar_and_leaves_transformers_as_it_was(tiny_svd_llama, capfd):
    """transformers 5 draws one for every model that it loads."""
    before = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    load_model(tiny_svd_llama)
    assert "%" not in capfd.readouterr().err
    assert before == (transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity())
