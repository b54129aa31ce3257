"""NaN and infinity in logits or results end every measurement with an error that says where."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from reports import EVERYTHING, write_report
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.checkpoint.atomic import json_text
from nxdi_svd_plugin.errors import NotFiniteError
from nxdi_svd_plugin.evaluate import layer_loss
from nxdi_svd_plugin.evaluate.harness import Options, evaluate_pair
from nxdi_svd_plugin.evaluate.perplexity import measure
from nxdi_svd_plugin.modeling.finite import finite_logits
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.recover.recover import recover
from nxdi_svd_plugin.recover.settings import Settings
from nxdi_svd_plugin.report.measured import TextName

IDS = torch.arange(3, 67)


@pytest.fixture(scope="module")
def overflowing(tiny_svd_llama, tmp_path_factory):
    """Finite weights whose products are beyond float32: gate and up of layer 2 times 1e25."""
    directory = shutil.copytree(tiny_svd_llama, tmp_path_factory.mktemp("overflow") / "model")
    tensors = load_file(directory / "model.safetensors")
    for name in ("gate", "up"):
        tensors[f"model.layers.2.mlp.{name}_proj.u"] *= 1e25
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_report(directory, **{**EVERYTHING, "recovery": None})
    return directory


def test_the_perplexity_of_a_model_that_overflows(overflowing):
    message = "the logits of .*model are NaN or infinite at 16 of 16 tokens in float32: its weights are damaged"
    with pytest.raises(NotFiniteError, match=message):
        measure(load_model(overflowing), IDS, 16)


def test_some_tokens_in_half_precision(tiny_llama):
    model = load_model(tiny_llama, torch.float16)
    model.lm_head.weight.data[7] = 6e4
    with finite_logits(model), pytest.raises(NotFiniteError, match=r"at \d+ of 64 tokens in float16: try --dtype flo"):
        model(IDS[None])
    model(IDS[None])  # the check ends with its block


def test_a_perplexity_that_is_no_number(tiny_llama):
    """Logits 1e6 times as large: finite, but e to thousands of nats is not."""
    model = load_model(tiny_llama)
    model.lm_head.weight.data *= 1e6
    with pytest.raises(NotFiniteError, match="nats a token; the perplexity, e to that power, is no number"):
        measure(model, IDS, 16)
    model.lm_head.weight.data *= 3e-5
    assert 600 > measure(model, IDS, 16).nll > 5


def test_layer_losses(overflowing, tiny_llama):
    text = TextName("t", "0" * 64)
    with pytest.raises(NotFiniteError, match="the logits of"):
        layer_loss.measure_layers(tiny_llama, overflowing, IDS, 16, text)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='lm-eval is not installed (pip ".[eval]")')
def test_tasks(overflowing, tiny_svd_llama):
    """Without a check, accuracies of NaN are numbers."""
    data = Path(__file__).parent / "data"
    with pytest.raises(NotFiniteError, match="the logits of"):
        evaluate_pair(tiny_svd_llama, overflowing, Options(["piqa"], task_data=data))


def test_recovery_of_a_model_that_overflows(overflowing, tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "text.txt").write_text("one two three " * 99)
    with pytest.raises(NotFiniteError, match="the logits of"):
        recover(overflowing, tmp_path / "text.txt", tmp_path / "out", Settings(window=32, steps=2))


def test_json_has_no_such_numbers():
    value = {"rows": [{"a": 1.0}, {"a": math.inf}], "b": "nan"}
    with pytest.raises(NotFiniteError, match=r"the result has rows\.1\.a = inf; nothing is reported or written"):
        json_text(value)
    value["rows"][1]["a"] = 2.5
    assert json.loads(json_text(value)) == value
