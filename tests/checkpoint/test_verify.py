"""verify: a good directory passes, and every fault is found by the check that is there for it."""

import json
import shutil

import numpy as np
import pytest
import torch
from reports import write_report
from safetensors.torch import load_file, save_file
from tiny_models import save_factored

from nxdi_svd_plugin.checkpoint import verify as module
from nxdi_svd_plugin.checkpoint.verify import check_order
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.record import recorded
from nxdi_svd_plugin.stored.layers import mlp_of
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

U = "model.layers.0.mlp.gate_proj.u"
NORM = "model.layers.1.input_layernorm.weight"


def verify(directory, base=None):
    return module.verify(directory, recorded, base)


@pytest.fixture(params=["llama", "qwen3"])
def pair(request, tmp_path):
    """(compressed directory with a report, its dense base)."""
    directory = tmp_path / "svd"
    shutil.copytree(request.getfixturevalue(f"tiny_svd_{request.param}"), directory)
    write_report(directory)
    return directory, request.getfixturevalue(f"tiny_{request.param}")


def failing(checks):
    return {check.name: check.detail for check in checks if check.ok is False}


def rewrite(directory, change, rehash=True):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if rehash:
        write_report(directory)


def test_a_good_directory_passes(pair):
    checks = verify(*pair)
    assert failing(checks) == {}
    assert [check.name for check in checks][-1] == "untouched tensors equal the base's"


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_what_a_core_holds_is_said(groups, tiny_llama, tmp_path):
    directory = save_factored(tiny_llama, tmp_path / "svd", 20, groups=groups)
    [check] = [check for check in verify(directory) if check.name == "shapes fit config.json"]
    each = 4 * 9 * (20 // groups) * (44 + 90 // groups)
    assert check.detail == f"{each} bytes of MLP weights on a core at tensor-parallel degree {groups}"


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


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("tokenizer.model", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("generation_config.json", "[1]", "not a JSON object"),
        ("tokenizer_config.json", "{", "Expecting property name"),
    ],
)
def test_each_fault_of_a_file_beside_the_weights_is_found(pair, file, content, said):
    (pair[0] / file).write_text(content)
    [(name, detail)] = failing(verify(pair[0])).items()
    assert name == "the files beside the weights can be read" and said in detail and file in detail


def test_a_changed_byte_is_found_by_the_hash(pair):
    rewrite(pair[0], flip_one_bit, rehash=False)
    assert failing(verify(pair[0])) == {"files have the hashes in report.json": "1: model.safetensors"}


def test_a_report_without_hashes_fails(pair):
    write_report(pair[0], files={})
    assert failing(verify(pair[0])) == {
        "files have the hashes in report.json": "1: model.safetensors (not in report.json)"
    }
    report = json.loads((pair[0] / "report.json").read_text())
    del report["files"]
    (pair[0] / "report.json").write_text(json.dumps(report))
    assert "there is no key 'files'" in failing(verify(pair[0]))["files have the hashes in report.json"]


def test_without_a_report_nothing_is_compared_with_it(pair):
    (pair[0] / "report.json").unlink()
    checks = verify(*pair)
    assert failing(checks) == {}
    assert [check.detail for check in checks if check.ok is None] == [
        "not compared: there is no report.json, as after save_pretrained"
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_tied_head_is_counted_apart(family, request):
    found = len(load_file(request.getfixturevalue(f"tiny_svd_{family}") / "model.safetensors"))
    [check] = [c for c in verify(request.getfixturevalue(f"tiny_svd_{family}")) if c.name == "no tensor is missing"]
    assert check.detail == f"{found}{' and the tied head' if family == 'qwen3' else ''} expected"


def test_a_tied_head_may_be_stored_in_its_shape(tiny_svd_qwen3, tmp_path):
    directory = shutil.copytree(tiny_svd_qwen3, tmp_path / "svd")
    rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert failing(verify(directory)) == {}
    rewrite(directory, lambda t: t.update({"lm_head.weight": torch.zeros(3, 44)}))
    assert failing(verify(directory)) == {"shapes fit config.json": "1: lm_head.weight [3, 44] instead of [259, 44]"}


def test_a_head_that_is_not_tied_is_expected(tiny_svd_llama, tmp_path):
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "svd")
    rewrite(directory, lambda t: t.pop("lm_head.weight"))
    assert failing(verify(directory)) == {"no tensor is missing": "1: lm_head.weight"}


def test_a_narrower_layer_and_groups_are_expected_as_config_says(pair):
    """Two groups halve the rows of every far matrix, and layer 0 keeps 60 of 90 neurons."""
    path = pair[0] / "config.json"
    config = json.loads(path.read_text())
    config["svd_config"]["groups"] = 2
    config["svd_config"]["layers"]["0"]["width"] = 60
    path.write_text(json.dumps(config))
    found = failing(verify(pair[0]))
    assert list(found) == ["shapes fit config.json", "layers are as report.json says"]
    assert found["shapes fit config.json"].startswith("8: model.layers.0.mlp.gate_proj.v [20, 90] instead of [10, 60]")
    assert "model.layers.0.mlp.down_proj.u [90, 20] instead of [60, 10]" in found["shapes fit config.json"]
    config["svd_config"]["layers"]["0"]["width"] = 59
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layer 0: 59 neurons in 2 groups .* expected equal slices"):
        verify(pair[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type 'llama'; expected svd_llama or svd_qwen3"),
        (lambda c: c.pop("svd_config"), "and the object svd_config"),
        (lambda c: c.update(quantization_config={"quant_method": "awq"}), "is quantized"),
        (lambda c: c["svd_config"].update(format_version=2_000), "Upgrade"),
        (lambda c: c["svd_config"].update(format_version=1), "format_version 1, which no release wrote; make the dir"),
        (lambda c: c["svd_config"]["layers"]["0"]["up_proj"].update(form="factored"), "form 'factored' is unknown"),
        (lambda c: c.update(mlp_bias=True), "has mlp_bias"),
    ],
)
def test_a_config_that_would_load_something_else_is_refused(pair, change, message):
    path = pair[0] / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        verify(pair[0])


def store_pivots(directory, pivots):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    entry = {"form": "interpolative", "rank": 20, "pivots": pivots}
    config["svd_config"]["layers"]["0"]["gate_proj"] = entry
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("pivots", [[[1, 21]], [[0, 10], [11, 21]], [[70, 90]]])
def test_pivots_in_another_place_are_found(pivots, pair):
    """They change no shape, so that every path would load them; only the report knows better."""
    store_pivots(pair[0], [[0, 20]])
    stem = U.removesuffix("u")
    rewrite(pair[0], lambda t: t.update({f"{stem}c": t.pop(f"{stem}v")[:, :70].contiguous()}))
    assert failing(verify(pair[0])) == {}
    store_pivots(pair[0], pivots)
    assert failing(verify(pair[0])) == {"layers are as report.json says": "1: layer 0"}


def test_moved_neurons_are_compared_at_their_old_place(pair):
    directory, base = pair
    order = np.stack([np.random.default_rng(i).permutation(90) for i in range(3)]).astype(np.int32)
    np.save(directory / "mlp_order.npy", order)
    name = "model.layers.1.mlp.down_proj.weight"
    assert failing(verify(directory, base)) == {"untouched tensors equal the base's": f"1: {name}"}
    rewrite(directory, lambda t: t.update({name: t[name][:, order[1]].contiguous()}))
    assert failing(verify(directory, base)) == {}
    for wrong, said in ((order[:2], "1: mlp_order.npy is [2, 90]"), (order % 89, "3: layer 0 of mlp_order.npy")):
        np.save(directory / "mlp_order.npy", wrong)
        assert said in failing(verify(directory, base))["neurons are moved inside their group"]
    (directory / "mlp_order.npy").write_bytes(b"no array")
    with pytest.raises(CheckpointError, match="mlp_order.npy cannot be read"):
        verify(directory, base)


def test_neurons_that_left_their_group_are_found():
    """In two groups of 45 of 90: a swap inside a slice, and one across."""
    layers = {0: mlp_of(90, dict.fromkeys(PROJECTIONS, LowRank(8, (), 2)))}
    inside, across = torch.arange(90), torch.arange(90)
    inside[[3, 44]], across[[3, 45]] = inside[[44, 3]], across[[45, 3]]
    assert check_order(inside[None], layers, 90).ok
    assert check_order(across[None], layers, 90).detail == "1: layer 0 of mlp_order.npy"


def test_without_the_order_moved_neurons_cannot_be_compared(pair):
    """save_pretrained leaves mlp_order.npy out. Layer 1's down projection is dense, beside interpolative ones."""
    directory, base = pair
    path, config = directory / "config.json", json.loads((directory / "config.json").read_text())
    for name in ("gate_proj", "up_proj"):
        entry = {"form": "interpolative", "rank": 20, "pivots": [[0, 20]]}
        config["svd_config"]["layers"]["1"][name] = entry
    path.write_text(json.dumps(config))
    found = failing(verify(directory, base))["untouched tensors equal the base's"]
    assert found.startswith(
        "mlp_order.npy is missing or wrong: the neurons of model.layers.1.mlp.down_proj.weight cannot"
    )


def test_the_order_of_a_layer_that_dropped_neurons():
    """Six of ten stay, three of every group, then -1."""
    mlp = mlp_of(6, dict.fromkeys(PROJECTIONS, LowRank(2, (), 2)))
    rows = {
        (4, 0, 1, 9, 5, 6, -1, -1, -1, -1): True,
        (4, 0, 1, 9, 5, 6, 7, -1, -1, -1): False,  # seven
        (4, 0, 1, 9, 5, 2, -1, -1, -1, -1): False,  # of the other group
        (4, 0, 0, 9, 5, 6, -1, -1, -1, -1): False,  # twice
        (4, 0, -1, 9, 5, 6, -1, -1, -1, -1): False,
    }
    for row, fine in rows.items():
        assert check_order(torch.tensor([row]), {0: mlp}, 10).ok is fine
    dense = mlp_of(6, dict.fromkeys(PROJECTIONS, DENSE))
    assert check_order(torch.tensor([[4, 0, 1, 2, 3, 9, -1, -1, -1, -1]]), {0: dense}, 10).ok


def test_not_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="is not a directory"):
        verify(tmp_path / "nowhere")
