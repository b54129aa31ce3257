"""A compressed directory and the dense model that it is compared with: its own, or one that is refused."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin.checkpoint.partner import check_partner
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.recipe import Calibration, Recipe
from nxdi_svd_plugin.recover.recover import recover
from nxdi_svd_plugin.recover.settings import Settings

CALIBRATION = Calibration(samples=2, length=32)


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """`tiny_llama` compressed, with its neurons in another order and a fingerprint of its source."""
    output = tmp_path_factory.mktemp("partner") / "svd"
    compress(tiny_llama, output, Recipe(block=2, ratio=0.2, form="interpolative", calibration=CALIBRATION))
    assert (output / "mlp_order.npy").is_file()
    return output


def fingerprinted(directory, base):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["svd_config"]["source"] = {"name": "own", "fingerprint": Reader(base).fingerprint()}
    path.write_text(json.dumps(config))
    return directory


def test_the_own_model_is_known_by_its_fingerprint_alone(made, tiny_llama, monkeypatch, caplog):
    monkeypatch.setattr("nxdi_svd_plugin.checkpoint.partner.other_tensors", lambda *_: pytest.fail("read the weights"))
    check_partner(made, tiny_llama)
    check_partner(tiny_llama, made)  # nothing to check of a dense one
    assert not caplog.text


def test_the_own_model_saved_again_is_a_warning(made, tiny_llama, tmp_path, caplog):
    """In another dtype, without the neurons that were moved: what was not compressed says so."""
    again = shutil.copytree(tiny_llama, tmp_path / "again")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(again / "model.safetensors").items()}
    save_file(tensors, again / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, "nxdi_svd_plugin"):
        check_partner(made, again)
    assert "has another fingerprint than the model that" in caplog.text


def test_another_model_is_refused_by_every_use(made, tmp_path):
    other = save_dense(tmp_path / "other", "llama", seed=1)
    with pytest.raises(CheckpointError, match=r"is not the model that .* was made from \(model\): .*give the model it"):
        check_partner(made, other)
    (tmp_path / "text.txt").write_text("one two three " * 99)
    with pytest.raises(CheckpointError, match="is not the model"):
        recover(made, tmp_path / "text.txt", tmp_path / "out", Settings(window=32), teacher_dir=other)
    assert not (tmp_path / "out").exists()


def test_two_compressed_directories_of_one_model(tiny_llama, tmp_path, caplog):
    """Other ranks, so other factors and another dense one: compared by their sources, else by what both left alone."""
    first, second = (save_factored(tiny_llama, tmp_path / str(rank), rank) for rank in (5, 9))
    other = save_factored(save_dense(tmp_path / "dense", "llama", seed=1), tmp_path / "other", 5)
    check_partner(first, second)
    with pytest.raises(CheckpointError, match="is not the model"):
        check_partner(first, other)
    check_partner(fingerprinted(first, tiny_llama), fingerprinted(second, tiny_llama))
    assert not caplog.text
    with pytest.raises(CheckpointError, match="is not the model"):
        check_partner(first, fingerprinted(other, tmp_path / "dense"))
