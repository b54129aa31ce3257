"""The source directory: what is read, and every damage that is refused before long work, with its message."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_dense

from nxdi_svd_plugin.checkpoint.reader import Reader, file_sha256
from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.checkpoint.tensors import expected_tensors, parameters
from nxdi_svd_plugin.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@pytest.fixture
def single(tiny_llama, tmp_path):
    """A copy of tiny_llama that may be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "single")


@pytest.fixture(scope="module")
def sharded_once(tmp_path_factory):
    return save_dense(tmp_path_factory.mktemp("sharded") / "model", "llama", dtype=torch.bfloat16, shard="60KB")


@pytest.fixture
def sharded(sharded_once, tmp_path):
    """A bf16 Llama in several files that may be damaged."""
    return shutil.copytree(sharded_once, tmp_path / "sharded")


def opened(directory):
    """Everything `compress` asks of a source, in its order."""
    config = read_config(directory)
    reader = Reader(directory)
    reader.check_tensors(config)
    assert {name for name, _ in reader.finite_tensors()} == set(reader.tensors)
    return reader


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_map(directory, change):
    index = json.loads((directory / INDEX).read_text())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def edit_tensors(directory, change):
    tensors = load_file(directory / SINGLE)
    change(tensors)
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("fixture", ["single", "sharded"])
def test_tensors_come_as_they_are_stored(request, fixture):
    directory = request.getfixturevalue(fixture)
    reader = opened(directory)
    stored = {name: t for path in directory.glob("*.safetensors") for name, t in load_file(path).items()}
    assert set(reader.tensors) == set(stored) and len(reader.files) == (1 if fixture == "single" else len(reader.files))
    for name, tensor in stored.items():
        assert torch.equal(reader.get(name), tensor) and reader.tensors[name].dtype == tensor.dtype
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(reader.rows("model.embed_tokens.weight", rows), stored["model.embed_tokens.weight"][rows])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_expected_tensors_and_parameter_count_are_those_of_transformers(family, request):
    directory = request.getfixturevalue(f"tiny_{family}")
    stored = load_file(directory / SINGLE)
    config = read_config(directory)
    assert expected_tensors(config) == {name: tuple(t.shape) for name, t in stored.items()}
    assert parameters(config) == sum(t.numel() for t in stored.values())
    assert config.mlp_parameters == sum(t.numel() for name, t in stored.items() if ".mlp." in name)


def test_the_fingerprint_is_of_the_content(sharded, tmp_path):
    before = Reader(sharded).fingerprint()
    moved = shutil.copytree(sharded, tmp_path / "moved")
    assert Reader(moved).fingerprint() == before
    path = sorted(moved.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert Reader(moved).fingerprint() != before
    assert file_sha256(path) != file_sha256(sharded / path.name)


def test_links_to_a_cache_are_followed(sharded, tmp_path):
    """The Hugging Face cache keeps links to files elsewhere; that is no path that leaves the directory."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in sharded.iterdir():
        (linked / path.name).symlink_to(path)
    assert opened(linked).fingerprint() == Reader(sharded).fingerprint()


def test_old_rotary_buffers_and_a_stored_tied_head_are_no_fault(tiny_qwen3, tmp_path):
    directory = shutil.copytree(tiny_qwen3, tmp_path / "model")

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(directory, add)
    opened(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral'; supported are llama, qwen3 .*mixture-of-expe"),
        ({"model_type": "gpt2"}, "'gpt2'; supported are llama, qwen3$"),
        ({"model_type": ...}, "model_type None"),
        ({"model_type": "svd_llama"}, "already compressed"),
        ({"svd_config": {}}, "already compressed"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantized \(gptq\)"),
        ({"quantization_config": {"bits": 4}}, r"is quantized \(unknown\)"),
        ({"intermediate_size": ...}, "intermediate_size = None; expected a positive integer"),
        ({"hidden_size": ...}, "hidden_size = None"),
        ({"hidden_size": "44"}, "hidden_size = '44'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"intermediate_size": 40}, "intermediate_size 40 below hidden_size 44"),
        ({"mlp_bias": True}, "has MLP biases"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'; only SiLU MLPs"),
        ({"max_position_embeddings": None}, "max_position_embeddings = None; expected a positive integer"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6'; expected a positive number"),
        ({"quantization_config": "int4"}, r"is quantized \(int4\)"),
    ],
)
def test_configs_that_are_refused(single, changes, message):
    edit_json(single / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        opened(single)


@pytest.mark.parametrize(("content", "message"), [(b"{", "is not valid JSON"), (b"[]", "holds a list")])
def test_a_config_that_is_no_json_object(single, content, message):
    (single / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        opened(single)


def test_no_config_and_no_directory(single):
    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        opened(single)
    with pytest.raises(CheckpointError, match="is not a directory"):
        opened(single / "config.json")


def test_a_pickle_is_refused_even_beside_nothing_else(single):
    (single / SINGLE).unlink()
    (single / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        opened(single)


def test_no_weights_at_all(single):
    (single / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=f"has no {SINGLE} and no {INDEX}; give a complete"):
        opened(single)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_files_are_refused(sharded, size):
    path = sorted(sharded.glob("*.safetensors"))[1]
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read as safetensors .*missing or truncated"):
        opened(sharded)


def test_a_missing_shard_is_named(sharded):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read as safetensors .*missing or truncated"):
        opened(sharded)


@pytest.mark.parametrize("path", ["../model-00001-of-00002.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_a_path_that_leaves_the_directory_is_refused_unopened(sharded, path, monkeypatch):
    edit_map(sharded, lambda names: names.update({"model.norm.weight": path}))
    monkeypatch.setattr("nxdi_svd_plugin.checkpoint.reader.safe_open", lambda *_, **__: pytest.fail("opened a file"))
    with pytest.raises(CheckpointError, match="outside the model directory"):
        opened(sharded)


def test_an_index_that_is_wrong_about_a_tensor(sharded):
    files = sorted(path.name for path in sharded.glob("*.safetensors"))

    def swap(names):
        names["model.norm.weight"] = next(file for file in files if file != names["model.norm.weight"])

    edit_map(sharded, swap)
    with pytest.raises(CheckpointError, match=r"says model\.norm\.weight is in .*; it is not there"):
        opened(sharded)


def test_two_sets_of_weights(sharded):
    """transformers reads the single file, so taking the shards would compress other weights than the user runs."""
    save_file({"model.norm.weight": torch.ones(2)}, sharded / SINGLE)
    with pytest.raises(CheckpointError, match=f"two sets of weights, {SINGLE} and the shards of {INDEX}"):
        Reader(sharded)


def test_an_index_that_leaves_out_a_shard(sharded):
    last = sorted(path.name for path in sharded.glob("*.safetensors"))[-1]

    def drop(names):
        for name in [name for name, file in names.items() if file == last]:
            del names[name]

    edit_map(sharded, drop)
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json: \d+ missing"):
        opened(sharded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a safetensors index"),
        ("[]", "is not a safetensors index"),
        ('{"metadata": {}}', "is not a safetensors index"),
        ('{"weight_map": {}}', "weight_map must map"),
        ('{"weight_map": {"a": 3}}', "weight_map must map"),
        ('{"weight_map": []}', "weight_map must map"),
    ],
)
def test_an_index_that_is_none(sharded, content, message):
    (sharded / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        opened(sharded)


def test_a_missing_and_an_unexpected_tensor(single):
    def rename(tensors):
        tensors["model.layers.1.mlp.up.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    edit_tensors(single, rename)
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj.*1 unexpected \(model\.lay"):
        opened(single)


def test_a_tensor_of_another_shape(single):
    edit_tensors(single, lambda t: t.update({"model.norm.weight": torch.ones(45)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[45\]; config\.json says \[44\]"):
        opened(single)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float64])
def test_a_quantized_tensor_is_refused_without_a_config_that_says_so(single, dtype):
    edit_tensors(single, lambda t: t.update({"model.norm.weight": torch.ones(44).to(dtype)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored as .*; expected float32, bfloat16"):
        opened(single)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused(single, name, bad):
    def damage(tensors):
        tensors[name].view(-1)[7] = bad

    edit_tensors(single, damage)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite values"):
        opened(single)


def test_a_tensor_in_two_files(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    tensors = load_file(files[1])
    tensors["model.norm.weight"] = torch.ones(44)
    tensors["model.embed_tokens.weight"] = torch.ones(259, 44)
    save_file(tensors, files[1])
    with pytest.raises(CheckpointError, match="is stored twice"):
        opened(sharded)
