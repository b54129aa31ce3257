"""Losses brought to one scale: what is measured, against whole models in float64; what it decides; resume, refusals."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_dropping_run import read_by_down
from test_two_pass import stop_before, stopped_and_resumed, stored
from test_widths import config_of, problem

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.plan.cost import disk_needs, scaling_work
from nxdi_svd_plugin.compress.plan.scaling import (
    SAMPLES,
    changes,
    scaled_curves,
    scaled_energies,
    scales,
)
from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
from nxdi_svd_plugin.compress.plan.widths import global_widths
from nxdi_svd_plugin.compress.run import run as loop
from nxdi_svd_plugin.compress.run.job import prepare
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError, RecipeError
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.report.scaling import DROP, LOW_RANK, Trial
from nxdi_svd_plugin.stored.projection import PROJECTIONS

SMALL = {"tp_degree": 2, "block": 3, "ratio": 0.25, "calibration": {"samples": 5, "length": 41}}
SCALED = {**SMALL, "drop": True, "scale": "builtin-mixed"}
FIXED = {**SCALED, "dense": ["2", "0.up_proj"], "ranks": {"0.gate_proj": 30}}
DAMPING = 0.1


def exact(monkeypatch):
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.calibration.quick_products", nullcontext)


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A model that was scaled, with exact products of float32, and the files that its widths were decided from."""
    output = tmp_path_factory.mktemp("scaled") / "made"
    with pytest.MonkeyPatch.context() as patch:
        exact(patch)
        stop_before(patch, "ranks", 1)
        with pytest.raises(KeyboardInterrupt):
            compress(tiny_llama, output, from_dict(FIXED), progress=False)
    files = shutil.copytree(output / ".unfinished", output.parent / "files")
    with pytest.MonkeyPatch.context() as patch:
        exact(patch)
        report = compress(tiny_llama, output, from_dict(FIXED), resume=True, progress=False)
    return output, report, files


def divergence(dense, other, samples):
    """Mean KL of two whole models in float64."""
    with torch.no_grad():
        p, q = (
            torch.stack([model(ids[None]).logits[0] for ids in samples]).log_softmax(-1) for model in (dense, other)
        )
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_dropping_alone_costs_what_a_whole_model_shows(made, tiny_llama):
    """Neurons out of the file, down refitted by numpy on the activations of the whole dense model."""
    _, report, files = made
    samples, z = prepare(tiny_llama, from_dict(FIXED)).scale.samples, read_by_down(tiny_llama, FIXED)
    dense, found = load_model(tiny_llama, torch.float64), [t for t in report.scaling.trials if t.kind == DROP]
    assert [(t.layer, t.width) for t in found] == [(0, 48), (1, 48)]  # half of 90 lies between 42 and 48
    for trial in found:
        order = load_file(files / f"dropping-{trial.layer:05d}-0.bin")["order"]
        kept = np.setdiff1d(np.arange(90), order[: 90 - trial.width].numpy())
        other = load_model(tiny_llama, torch.float64)
        mlp, acts = other.model.layers[trial.layer].mlp, z[trial.layer]
        ridge = np.sqrt(DAMPING * np.square(acts).sum(0).mean()) * np.eye(90)
        rows, wide = np.vstack([acts, ridge]), mlp.down_proj.weight.detach().numpy().T
        down = np.linalg.lstsq(rows[:, kept], rows @ wide, rcond=None)[0]
        mlp.gate_proj.weight.data, mlp.up_proj.weight.data = mlp.gate_proj.weight[kept], mlp.up_proj.weight[kept]
        mlp.down_proj.weight.data = torch.from_numpy(down.T)
        # logits of float32 below 8: 2^-24 of them in either model and in the sums; statistics of float32, 1e-4 of down
        assert trial.measured == pytest.approx(divergence(dense, other, samples), rel=2e-3, abs=1e-5)
        assert trial.measured > 1e-3


def test_truncating_alone_costs_what_a_compressed_model_shows(made, tiny_llama, tmp_path, monkeypatch):
    """Each layer at the ranks that were tried, by a compression of it alone, which stores pairs and runs them."""
    exact(monkeypatch)
    _, report, _ = made
    samples, dense = prepare(tiny_llama, from_dict(FIXED)).scale.samples, load_model(tiny_llama, torch.float64)
    found = [t for t in report.scaling.trials if t.kind == LOW_RANK]
    rank = changes(config_of(3, 44, 90), from_dict(FIXED), 1)[0].ranks["up_proj"] * 2
    tried = {0: {"gate_proj": 30, "down_proj": rank}, 1: dict.fromkeys(PROJECTIONS, rank)}
    assert [t.layer for t in found] == list(tried) and found[1].rank == rank
    for trial in found:
        ranks = {f"{trial.layer}.{name}": own for name, own in tried[trial.layer].items()}
        free = {f"{i}.{name}" for i in range(3) for name in PROJECTIONS} - set(ranks)
        alone = {**SMALL, "ratio": None, "form": "pair", "allocation": "uniform", "dense": sorted(free), "ranks": ranks}
        alone["refit"] = False
        one = compress(tiny_llama, tmp_path / str(trial.layer), from_dict(alone), progress=False)
        other = load_model(tmp_path / str(trial.layer), torch.float64)
        # as above; the factors are float32
        assert trial.measured == pytest.approx(divergence(dense, other, samples), rel=2e-3, abs=1e-5)
        assert trial.predicted == pytest.approx(sum(m.predicted_loss or 0 for m in one.matrices), rel=1e-6)
        assert trial.measured > 1e-3


def test_the_report_says_predicted_scaled_and_measured(made, tiny_llama, capsys):
    output, report, _ = made
    again = Report.read(output)
    assert again.scaling == report.scaling and again.scaling.text == "builtin-mixed"
    assert (again.scaling.samples, again.scaling.length, again.scaling.tokens) == (SAMPLES, 41, SAMPLES * 41)
    for layer, predicted, scaled in again.scaling.losses(again.matrices):
        own = [m for m in again.matrices if m.layer == layer]
        scales = {t.kind: t.scale for t in again.scaling.trials if t.layer == layer}
        low, drop = (sum(getattr(m, key) or 0.0 for m in own) for key in ("predicted_loss", "drop_loss"))
        assert predicted == pytest.approx(low + drop)
        assert scaled == pytest.approx(low * scales.get(LOW_RANK, 1) + drop * scales.get(DROP, 1))
    assert main(["inspect", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scaling"]
    assert found["sha256"] == report.scaling.sha256 and [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert main(["inspect", str(output)]) == 0
    text = capsys.readouterr().out
    assert "losses of all layers: predicted" in text and "dropping tried" in text
    assert "losses of all layers: predicted" in report.to_text()


def test_scales_of_one_change_nothing(tiny_llama, tmp_path, monkeypatch):
    compress(tiny_llama, tmp_path / "plain", from_dict({**SMALL, "drop": True}), progress=False)
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.scaling.scales", lambda losses: [1.0] * len(losses))
    compress(tiny_llama, tmp_path / "ones", from_dict(SCALED), progress=False)
    plain, ones = stored(tmp_path / "plain"), stored(tmp_path / "ones")
    assert plain.keys() == ones.keys() and all(torch.equal(plain[name], ones[name]) for name in plain)
    recipes = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "ones")]
    assert "scale" not in recipes[0]["recipe"] and "scaling" not in recipes[0]
    assert recipes[1]["recipe"].pop("scale") == "builtin-mixed" and recipes[0]["recipe"] == recipes[1]["recipe"]


def test_a_kind_that_costs_more_than_predicted_is_chosen_less(tiny_llama, tmp_path, monkeypatch):
    """The same measurements, with dropping or low rank four times as dear."""
    stay = {}
    for dear in (DROP, LOW_RANK):

        def trials_of(run, dear=dear):
            return [Trial(**{**t, "scale": 4.0 if t["kind"] == dear else 1.0}) for t in run.state.trials]

        monkeypatch.setattr("nxdi_svd_plugin.compress.run.factoring.trials_of", trials_of)
        report = compress(tiny_llama, tmp_path / dear, from_dict(SCALED), progress=False)
        stay[dear] = sum(mlp.width for mlp in report.layers.values())
    assert stay[DROP] > stay[LOW_RANK]


def test_scales_multiply_the_curves_that_are_chosen_by():
    recipe = from_dict({"drop": True, "tp_degree": 1, "block": 2, "ratio": 0.3})
    config = config_of(3)
    energies, curves = problem(config, recipe)
    trials = [Trial(1, LOW_RANK, 0.1, 0.3, 3.0, rank=4), Trial(1, DROP, 0.1, 0.05, 0.5, width=20)]
    low, drop = scaled_energies(energies, trials), scaled_curves(curves, trials)
    assert all(np.array_equal(low[i, n], (3.0 if i == 1 else 1.0) * e) for (i, n), e in energies.items())
    assert np.allclose(drop[1].loss, np.multiply(curves[1].loss, 0.5)) and drop[1].shares == curves[1].shares
    assert drop[0] == curves[0] and drop[2] == curves[2]
    before, after = global_widths(config, recipe, energies, curves), global_widths(config, recipe, low, drop)
    assert after[1].width <= before[1].width and after != before


def test_a_scale_is_the_median_ratio_of_its_kind():
    low = [(LOW_RANK, 0.02, 0.02 * ratio) for ratio in (0.01, 0.5, 0.8, 1.0, 50.0)]
    drop = [(DROP, 0.1, 0.2), (DROP, 0.1, 0.1), (DROP, 0.0, 0.3), (DROP, 1e-9, 0.0)]
    assert scales(low + drop) == pytest.approx([0.8] * 5 + [1.5] * 4)
    assert scales([]) == [] and scales([(DROP, 0.0, 0.0)]) == [1.0] == scales([(LOW_RANK, 0.1, 0.0)])


def test_what_is_tried_is_near_the_ratio():
    config = config_of(2, 576, 1536)
    for ratio, rank, width in ((0.1, 512, 768), (0.2, 384, 768), (0.3, 256, 768)):
        low, drop = changes(config, from_dict({"ratio": ratio, "drop": True}), 0)
        assert (set(low.ranks.values()), drop.width) == ({rank}, width)
    assert [c.kind for c in changes(config, from_dict({"ratio": 0.1}), 0)] == [LOW_RANK]
    only = from_dict({"ratio": 0.2, "dense": list(PROJECTIONS), "drop": True})
    assert [c.kind for c in changes(config, only, 0)] == [DROP]
    assert changes(config, from_dict({"ratio": 0.2, "dense": ["0"]}), 0) == []


STOPS = [("scale-embed", 1), ("scale-layer", 1), ("scale-layer", 3), ("scale-head", 1), ("ranks", 1), ("factor", 2)]


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_resumes_to_the_same_bytes(stop, tiny_llama, tmp_path_factory, tmp_path, monkeypatch):
    whole = tmp_path_factory.getbasetemp() / "scaled-once"
    if not whole.exists():
        compress(tiny_llama, whole, from_dict(FIXED), progress=False)
    report = stopped_and_resumed(tiny_llama, from_dict(FIXED), stop, whole, tmp_path / "out", monkeypatch)
    assert report.scaling == Report.read(whole).scaling
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_without_dropping_spectra_serve_both_and_one_copy_waits_at_a_time(tiny_llama, tmp_path, monkeypatch):
    stop_before(monkeypatch, "scale-layer", 3)
    recipe = from_dict({**SMALL, "ratio": 0.1, "scale": "builtin-mixed"})
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    files = {path.name: path.stat().st_size for path in (tmp_path / "out" / ".unfinished").iterdir()}
    assert [name for name in files if name.startswith("copies")] == ["copies-00002-0.bin"]
    assert files["copies-00002-0.bin"] == 3 * 4 * SAMPLES * 41 * 44  # the dense model and two layers changed
    assert {f"spectra-{i:05d}-0.bin" for i in range(3)} <= set(files)
    monkeypatch.undo()
    report = compress(tiny_llama, tmp_path / "out", recipe, resume=True, progress=False)
    assert [t.kind for t in report.scaling.trials] == [LOW_RANK] * 3
    damaged = {**SMALL, "ratio": 0.1, "scale": "builtin-heldout"}
    with pytest.raises(CheckpointError, match="the recipe, scale text changed since"):
        compress(tiny_llama, tmp_path / "out", from_dict(damaged), resume=True, progress=False)


@pytest.mark.parametrize(
    ("changes_", "message"),
    [
        ({"scale": 3}, "scale is 3; expected str"),
        ({"scale": "builtin"}, "scale and calibration are the same text, builtin"),
        (
            {"scale": "builtin-mixed", "allocation": "uniform"},
            "scale corrects the losses that allocation global",
        ),
        ({"scale": "builtin-mixed", "recipe": "paper"}, "scale corrects the losses"),
    ],
)
def test_recipes_that_scale_nothing_are_refused(changes_, message):
    with pytest.raises(RecipeError, match=message):
        from_dict(changes_)


def test_texts_that_measure_nothing_are_refused(tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(400)))
    shutil.copy(text, tmp_path / "copy.txt")
    recipe = {**SMALL, "calibration": {"text": str(text), "samples": 5, "length": 41}}
    with pytest.raises(CalibrationError, match=r"copy.txt is the calibration text, on which predicted losses"):
        prepare(tiny_llama, from_dict({**recipe, "scale": str(tmp_path / "copy.txt")}))
    (tmp_path / "short.txt").write_text("a" * (41 * SAMPLES - 1))
    with pytest.raises(
        CalibrationError, match=rf"has {41 * SAMPLES - 1} tokens; losses are measured on {41 * SAMPLES}"
    ):
        prepare(tiny_llama, from_dict({**recipe, "scale": str(tmp_path / "short.txt")}))
    with pytest.raises(CalibrationError, match="cannot be read"):
        prepare(tiny_llama, from_dict({**recipe, "scale": str(tmp_path / "none.txt")}))


def test_a_run_is_not_resumed_with_another_text(tiny_llama, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 26) for i in range(400)))
    recipe = from_dict({**SMALL, "scale": str(text)})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, "forward", 1)
        compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    text.write_text("b" + text.read_text())
    with pytest.raises(CheckpointError, match="the scale text changed since"):
        compress(tiny_llama, tmp_path / "out", recipe, resume=True, progress=False)


def test_the_plan_counts_the_trials(tiny_llama):
    config, tokens = prepare(tiny_llama, from_dict(FIXED)).config, SAMPLES * 41
    plan, without = (make_plan(tiny_llama, from_dict(recipe)) for recipe in (FIXED, {**FIXED, "scale": None}))
    one = 44 * (48 + 24 + 24 + 48) + 3 * 44 * 90 + 2 * 44  # attention of 4 and 2 heads of 12, the MLP, two norms
    expected = 2 * tokens * ((3 + 5 + 5) * one + 5 * 44 * 259)  # two changes in each of two layers, none in the last
    assert plan["calibration"]["scaling_flop"] == scaling_work(config, from_dict(FIXED)) == expected
    assert f"scaling losses on builtin-mixed: {expected / 1e12:.1f} TFLOP" in plan_text(plan)
    assert "scaling_flop" not in without["calibration"] and "scaling losses" not in plan_text(without)
    few = {**FIXED, "calibration": {"samples": 1, "length": 41}}
    assert disk_needs(config, from_dict(few), 41).states == 4 * 44 * max(41 * 6, 2 * 5 * tokens)
    assert 2 * plan["calibration"]["eigendecompositions"] == 3 * without["calibration"]["eigendecompositions"]


def test_no_step_of_it_without_the_key(tiny_llama, tmp_path, monkeypatch):
    for kind in ("scale-embed", "scale-layer", "scale-head"):
        monkeypatch.delitem(loop.WORK, kind)
    report = compress(tiny_llama, tmp_path / "out", from_dict({**SMALL, "ratio": 0.1}), progress=False)
    assert report.scaling is None
