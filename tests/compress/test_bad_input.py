"""Every kind of bad input ends in one clear message before long work, and leaves source and output as they were."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.compress.calibrate import layer as calibrate
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.recipe import Calibration, Recipe, from_dict

CALIBRATION = Calibration(samples=4, length=32)


def recipe(**changes):
    return Recipe(**{"block": 2, "ratio": 0.2, "calibration": CALIBRATION, **changes})


@pytest.fixture
def source(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "in")


@pytest.fixture(autouse=True)
def no_long_work(monkeypatch):
    """Running a layer would be long work."""

    def refuse(*_):
        raise AssertionError("bad input reached the layer loop")

    monkeypatch.setattr(calibrate, "load_layer", refuse)


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    kept = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))


def edit_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_index(directory, file="model.safetensors", **extra):
    names = load_file(directory / "model.safetensors") if (directory / "model.safetensors").exists() else {}
    index = {"metadata": {}, "weight_map": {**dict.fromkeys(names, file), **extra}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_shard(directory):
    write_index(directory, "model-00001-of-00001.safetensors")
    (directory / "model.safetensors").unlink()


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def poison(value):
    def change(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = value

    return change


def to_pickle(directory):
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


NAN, INFINITE = poison(float("nan")), poison(float("inf"))
UP = "model.layers.1.mlp.up_proj.weight"
DAMAGE = {
    "no directory": (shutil.rmtree, "is not a directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "is not valid JSON"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
    "truncated": (truncate, "truncated"),
    "pickle": (to_pickle, "is a pickle, which can run code"),
    "no MLP size": (lambda d: edit_config(d, intermediate_size=None), "intermediate_size = None"),
    "wrong MLP size": (lambda d: edit_config(d, intermediate_size=91), "config.json says"),
    "missing layer": (lambda d: edit_config(d, num_hidden_layers=4), "missing"),
    "extra layer": (lambda d: edit_config(d, num_hidden_layers=2), "unexpected"),
    "Mixtral": (lambda d: edit_config(d, model_type="mixtral", num_local_experts=8), "'mixtral'; supported are llama"),
    "quantized": (lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}), r"is quantized \(gptq\)"),
    "compressed already": (lambda d: edit_config(d, model_type="svd_llama"), "already compressed"),
    "MLP bias": (lambda d: edit_config(d, mlp_bias=True), "MLP biases"),
    "NaN": (lambda d: edit_weights(d, NAN), "layers.2.mlp.up_proj.weight holds NaN or infinite"),
    "infinity": (lambda d: edit_weights(d, INFINITE), "layers.2.mlp.up_proj.weight holds NaN or infinite"),
    "missing tensor": (lambda d: edit_weights(d, lambda t: t.pop(UP)), "1 missing .*up_proj"),
    "int8 weights": (
        lambda d: edit_weights(d, lambda t: t.update({UP: t[UP].to(torch.int8)})),
        "stored as I8; expected float32",
    ),
    "index names a missing file": (lose_shard, "missing or truncated"),
    "two sets of weights": (lambda d: write_index(d, "model-00001-of-00001.safetensors"), "two sets of weights"),
    "index names a missing tensor": (lambda d: write_index(d, extra="model.safetensors"), "it is not there"),
    "index leaves the directory": (lambda d: write_index(d, "../in/model.safetensors"), "outside the model directory"),
    "index is no index": (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "not a safetensors index"),
    "no tokenizer": (
        lambda d: [(d / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer",
    ),
    "another model's tokenizer": (
        lambda d: [edit_config(d, vocab_size=50), edit_weights(d, cut_vocabulary)],
        "the model has 50 embeddings",
    ),
}


def cut_vocabulary(tensors):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:50].clone()


@pytest.mark.parametrize("case", DAMAGE)
def test_a_bad_source(source, tmp_path, case):
    damage, message = DAMAGE[case]
    damage(source)
    with pytest.raises(SvdError, match=message) as caught:
        compress(source, tmp_path / "out", recipe())
    assert "\n" not in str(caught.value).split("(")[0]
    assert not (tmp_path / "out").exists()


TEXTS = {
    "missing": (None, "cannot be read"),
    "empty": (b" \n", "is empty"),
    "too short": (b"a few words", "has 11 tokens, 4 samples of 32 need 128"),
    "not UTF-8": (b"abc \xff" * 100, "is not UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_bad_calibration_text(tiny_llama, tmp_path, case):
    content, message = TEXTS[case]
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    calibration = Calibration(text=str(tmp_path / "text.txt"), samples=4, length=32)
    with pytest.raises(SvdError, match=message):
        compress(tiny_llama, tmp_path / "out", recipe(calibration=calibration))
    assert not (tmp_path / "out").exists()


RECIPES = {
    "ratio 0": ({"ratio": 0.0}, "between 0 and 1"),
    "ratio 1": ({"ratio": 1.0}, "between 0 and 1"),
    "large block": ({"block": 64}, "block 64 is larger than the smaller side of a 44 x 90 matrix"),
    "large block of the default recipe": (
        {"block": 64, "form": "interpolative", "objective": "two_sided", "allocation": "global"},
        "block 64 is larger than the smaller side of a 44 x 90 matrix",
    ),
    "saves nothing": ({"block": 40, "ratio": 0.02, "tau": 0.1}, "saves nothing"),
    "rank too large": ({"ranks": {"up_proj": 45}}, "rank 45 for 0.up_proj is more than its full rank 44"),
    "no such layer": ({"dense": ("3",)}, "has layers 0 to 2"),
    "ratio without effect": ({"dense": ("gate_proj", "up_proj", "down_proj")}, "has no effect"),
    "too much kept dense": ({"dense": ("0", "1", "2.up_proj", "2.gate_proj"), "ratio": 0.5}, "would need ratio"),
    "longer than the model": (
        {"calibration": Calibration(samples=1, length=513)},
        "more than the model's 512 positions",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe(tiny_llama, tmp_path, case):
    changes, message = RECIPES[case]
    with pytest.raises(SvdError, match=message):
        compress(tiny_llama, tmp_path / "out", from_dict({**recipe().to_dict(), **plain(changes)}))
    assert not (tmp_path / "out").exists()


def plain(changes):
    return {k: vars(v) if isinstance(v, Calibration) else v for k, v in changes.items()}


def test_a_non_empty_output(tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(SvdError, match="holds files already"):
        compress(tiny_llama, tmp_path / "out", recipe())
    with pytest.raises(SvdError, match="holds no compressed model, and --overwrite deletes nothing else"):
        compress(tiny_llama, tmp_path / "out", recipe(), overwrite=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_bad_outputs(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("")
    for output, flags, message in (
        (tiny_llama, {}, "must be separate directories"),
        (tiny_llama / "sub", {}, "must be separate directories"),
        (tiny_llama.parent, {"overwrite": True}, "must be separate directories"),
        (tmp_path / "file", {}, "is a file"),
        (tmp_path / "file" / "out", {}, "is not a writable directory"),
        (tmp_path / "out", {"resume": True, "overwrite": True}, "contradict each other"),
    ):
        with pytest.raises(SvdError, match=message):
            compress(tiny_llama, output, recipe(), **flags)


def test_overwrite_keeps_the_old_model_until_the_new_one_is_checked(tiny_llama, source, tmp_path, monkeypatch):
    monkeypatch.undo()
    compress(tiny_llama, tmp_path / "out", recipe())
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    edit_weights(source, NAN)
    with pytest.raises(SvdError, match="NaN"):
        compress(source, tmp_path / "out", recipe(), overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "config.json").exists()
