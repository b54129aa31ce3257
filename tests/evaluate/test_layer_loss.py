"""Predicted against measured loss of each layer, on a tiny model where the prediction has to hold."""

import dataclasses
import json
import shutil

import pytest
import torch
from reports import EVERYTHING, LOSSES, a_report, matrices

import nxdi_svd_plugin
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError, RecipeError
from nxdi_svd_plugin.evaluate.layer_loss import measure_layers, predicted_losses, rank_correlation, to_text
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.report.measured import TextName
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.stored.projection import DENSE

TEXT = TextName("text.txt", "0" * 64)


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # d = (0, 1, 1, 0): 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rank_correlation([1.0], [2.0]) is None


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """Very different ranks by layer."""
    output = tmp_path_factory.mktemp("layers") / "out"
    recipe = {"tp_degree": 1, "block": 4, "allocation": "uniform", "calibration": {"samples": 8, "length": 64}}
    ranks = {f"{i}.{name}": rank for i, rank in ((0, 8), (1, 36), (2, 24)) for name in ("gate_proj", "up_proj")}
    recipe |= {"ranks": ranks, "dense": ["down_proj"], "damping": 1e-3}
    nxdi_svd_plugin.compress(tiny_llama, output, from_dict(recipe), progress=False)
    return output


def test_prediction_orders_the_layers(tiny_llama, made):
    """The measured KL has the predicted order, and is the divergence of a model with that one MLP exchanged."""
    ids = torch.randint(3, 259, (256,), generator=torch.Generator().manual_seed(0))
    losses = measure_layers(tiny_llama, made, ids, 64, TEXT)
    assert losses.rank_correlation == pytest.approx(1) and losses.tokens == 256
    assert all(m > 0 for m in losses.measured)
    dense, mixed = load_model(tiny_llama, torch.float64), load_model(tiny_llama, torch.float64)
    mixed.model.layers[1].mlp = load_model(made, torch.float64).model.layers[1].mlp
    with torch.no_grad():
        p, q = (model(ids.view(4, 64)).logits.log_softmax(-1) for model in (dense, mixed))
    # float32 logits of size 1: 2^-24 each way, against a divergence of 1e-3 and more
    assert losses.measured[1] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_the_command_measures_records_and_reports(tiny_llama, made, tmp_path, capsys):
    """`evaluate --layers --record`, then `report`: the rank correlation is in report.json, report.md and a figure."""
    pytest.importorskip("matplotlib")
    model = shutil.copytree(made, tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(400)))
    words = ["evaluate", "--base", str(tiny_llama), "--model", str(model), "--layers", "--text", str(text)]
    assert main([*words, "--window", "64", "--max-tokens", "200", "--record", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tokens"] == 192 and len(printed["measured"]) == 3 and printed["text"]["name"] == "text.txt"
    before = json.loads((made / "report.json").read_text())
    assert json.loads((model / "report.json").read_text()) == before | {"layer_losses": printed}
    assert main(["report", str(model)]) == 0
    found = (model / "report.md").read_text()
    assert f"predicted and measured loss {printed['rank_correlation']:.3f}; sums of all layers" in found
    assert "report-losses.png" in found and (model / "report-losses.png").stat().st_size > 1000
    (tmp_path / "printed.json").write_text(json.dumps(printed))
    assert main(["report", str(made), "--evaluation", str(tmp_path / "printed.json"), "--output", str(tmp_path)]) == 0
    assert "rank correlation (Spearman)" in (tmp_path / "report.md").read_text()
    assert main([*words, "--window", "64"]) == 0
    assert "rank correlation (Spearman)" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(tiny_llama, made, tmp_path, capsys):
    ids = torch.arange(3, 67)
    with pytest.raises(CalibrationError, match="has 64 tokens, one window needs 65"):
        measure_layers(tiny_llama, made, ids, 65, TEXT)
    with pytest.raises(RecipeError, match="window is 1; this model takes 2 to"):
        measure_layers(tiny_llama, made, ids, 1, TEXT)
    trained = shutil.copytree(made, tmp_path / "trained")
    dataclasses.replace(Report.read(trained), recovery=EVERYTHING["recovery"]).write(trained)
    with pytest.raises(CheckpointError, match="were trained after their losses were predicted"):
        measure_layers(tiny_llama, trained, ids, 32, TEXT)
    (trained / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no report\.json"):
        measure_layers(tiny_llama, trained, ids, 32, TEXT)
    assert main(["evaluate", "--model", str(made), "--layers"]) == 2
    assert "give it with --base" in capsys.readouterr().err
    words = ["evaluate", "--model", str(made), "--base", str(tiny_llama), "--layers"]
    for option in (["--tasks", "piqa"], ["--stride", "8"], ["--dtype", "bfloat16"]):
        assert main([*words, *option]) == 2
        assert "leave --tasks, --dtype and --stride out" in capsys.readouterr().err


def test_a_report_without_predictions_is_refused(tiny_llama, tmp_path):
    recipe = from_dict({"recipe": "paper", "block": 4, "calibration": {"samples": 2, "length": 40}})
    nxdi_svd_plugin.compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    with pytest.raises(CheckpointError, match="objective two_sided"):
        measure_layers(tiny_llama, tmp_path / "out", torch.arange(3, 67), 32, TEXT)


def test_the_predictions_are_those_of_the_report(tmp_path):
    """Sums over the projections of a layer; a dense one adds nothing."""
    records = [dataclasses.replace(m, predicted_loss=0.1 * (m.layer + 1)) for m in matrices()]
    records[-1] = dataclasses.replace(records[-1], projection=DENSE, predicted_loss=None)
    a_report(matrices=tuple(records)).write(tmp_path)
    assert predicted_losses(tmp_path) == pytest.approx([0.3, 0.6, 0.6])
    a_report().write(tmp_path)
    with pytest.raises(CheckpointError, match="no predicted losses; compress with objective two_sided"):
        predicted_losses(tmp_path)


def test_losses_are_a_table():
    lines = to_text(LOSSES).splitlines()
    assert len(lines) == 5 and lines[2].split() == ["1", "0.2", "0.25"]
    assert lines[-1] == "rank correlation (Spearman) 1.000 on 2048 tokens of held.txt, float32"
