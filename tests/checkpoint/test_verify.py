"""verify: a good directory passes, and every fault is found by the check that is there for it."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.checkpoint.reader import file_sha256
from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.errors import CheckpointError

U = "model.layers.0.mlp.gate_proj.u"
NORM = "model.layers.1.input_layernorm.weight"


def hash_files(directory):
    report = {"files": {"model.safetensors": file_sha256(directory / "model.safetensors")}}
    (directory / "report.json").write_text(json.dumps(report))


@pytest.fixture(params=["llama", "qwen3"])
def pair(request, tmp_path):
    """(compressed directory with a report, its dense base)."""
    directory = tmp_path / "svd"
    shutil.copytree(request.getfixturevalue(f"tiny_svd_{request.param}"), directory)
    hash_files(directory)
    return directory, request.getfixturevalue(f"tiny_{request.param}")


def failing(checks):
    return {check.name: check.detail for check in checks if not check.ok}


def rewrite(directory, change, rehash=True):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if rehash:
        hash_files(directory)


def test_a_good_directory_passes(pair):
    checks = verify(*pair)
    assert failing(checks) == {}
    assert [check.name for check in checks][-1] == "untouched tensors equal the base's"


def flip_one_bit(tensors):
    tensors[NORM].view(torch.int32)[0] ^= 1


@pytest.mark.parametrize(
    ("change", "check", "detail"),
    [
        (lambda t: t.pop(U), "no tensor is missing", f"1: {U}"),
        (lambda t: t.update(extra=torch.zeros(2)), "no tensor is unexpected", "1: extra"),
        (lambda t: t.update({U: torch.zeros(44, 3)}), "shapes fit config.json", f"1: {U} [44, 3] instead of [44, 20]"),
        (lambda t: t[U].__setitem__((0, 0), float("nan")), "all values are finite", f"1: {U}"),
        (flip_one_bit, "untouched tensors equal the base's", f"1: {NORM}"),
        (lambda t: t.pop(NORM), "untouched tensors equal the base's", f"1: {NORM} (base only)"),
    ],
)
def test_each_fault_of_a_tensor_is_found(pair, change, check, detail):
    rewrite(pair[0], change)
    assert failing(verify(*pair))[check] == detail


def test_a_changed_byte_is_found_by_the_hash(pair):
    rewrite(pair[0], flip_one_bit, rehash=False)
    assert failing(verify(pair[0])) == {"files have the hashes in report.json": "1: model.safetensors"}


def test_a_report_without_hashes_fails(pair):
    (pair[0] / "report.json").unlink()
    assert list(failing(verify(pair[0]))) == ["files have the hashes in report.json"]
    (pair[0] / "report.json").write_text(json.dumps({"files": {}}))
    assert failing(verify(pair[0])) == {
        "files have the hashes in report.json": "1: model.safetensors (not in report.json)"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type 'llama'; expected svd_llama or svd_qwen3"),
        (lambda c: c.pop("svd_config"), "and the object svd_config"),
        (lambda c: c.update(quantization_config={}), "has a quantization_config"),
        (lambda c: c["svd_config"].update(format_version=2_000), "Upgrade"),
    ],
)
def test_a_config_that_would_load_something_else_is_refused(pair, change, message):
    path = pair[0] / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        verify(pair[0])


def test_moved_neurons_are_compared_at_their_old_place(pair):
    directory, base = pair
    order = np.stack([np.random.default_rng(i).permutation(90) for i in range(3)]).astype(np.int32)
    np.save(directory / "mlp_order.npy", order)
    name = "model.layers.1.mlp.down_proj.weight"
    assert failing(verify(directory, base)) == {"untouched tensors equal the base's": f"1: {name}"}
    rewrite(directory, lambda t: t.update({name: t[name][:, order[1]].contiguous()}))
    assert failing(verify(directory, base)) == {}
    (directory / "mlp_order.npy").write_bytes(b"no array")
    with pytest.raises(CheckpointError, match="mlp_order.npy cannot be read"):
        verify(directory, base)


def test_not_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="is not a directory"):
        verify(tmp_path / "nowhere")
