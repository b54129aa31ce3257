"""Neurons dropped by a whole compression: what stays, the refit and its loss, beside groups, forms and fixed layers."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_two_pass import STEPS, stop_before, stopped_and_resumed, stored
from tiny_models import save_dense

from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.calibrate.inner import add_inner, nothing, whole
from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
from nxdi_svd_plugin.compress.run.job import prepare
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.evaluate.layer_loss import predicted_losses
from nxdi_svd_plugin.modeling.configs import layers_of
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.report.record import Report, recorded
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS

SMALL = {"drop": True, "tp_degree": 1, "block": 4, "ratio": 0.2, "calibration": {"samples": 4, "length": 40}}
SMALL["refit"] = False  # test_refit.py
ONLY = {**SMALL, "dense": list(PROJECTIONS)}
MIXED = {
    **SMALL,
    "ratio": 0.3,
    "dense": ["0.up_proj"],
    "ranks": {"0.gate_proj": 20, "1.up_proj": 24, "1.down_proj": 28},
}
DAMPING = 0.1
IDS = torch.arange(3, 60)[None]


def logits(directory):
    with torch.no_grad():
        return load_model(directory, dtype=torch.float64)(IDS).logits


def orders(directory):
    return [row[row >= 0] for row in np.load(directory / "mlp_order.npy")]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def dropped(request, tmp_path_factory):
    """A source, and the smaller dense model that dropping alone makes of it, with exact products of float32."""
    source, output = request.getfixturevalue(f"tiny_{request.param}"), tmp_path_factory.mktemp("only") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nxdi_svd_plugin.compress.run.calibration.quick_products", nullcontext)
        report = compress(source, output, from_dict(ONLY), progress=False)
    return source, output, report


def read_by_down(source, recipe):
    """z [tokens, I] of every layer, from hooks on the whole model."""
    model, seen = load_model(source, dtype=torch.float32), {}
    for i, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_hook(lambda _, args, out, i=i: seen.setdefault(i, []).append(args[0][0]))
    with torch.no_grad():
        for ids in prepare(source, from_dict(recipe)).samples:
            model(ids[None])
    return {i: torch.cat(parts).double().numpy() for i, parts in seen.items()}


def test_what_stays_is_the_sources_and_down_is_least_squares(dropped):
    source, output, report = dropped
    old, new, z = stored(source), stored(output), read_by_down(source, ONLY)
    narrow = 0
    for i, order in enumerate(orders(output)):
        stem = f"model.layers.{i}.mlp."
        assert report.layers[i].width == len(order) and (np.diff(order) > 0).all()
        for name in ("gate_proj", "up_proj"):
            assert torch.equal(new[f"{stem}{name}.weight"], old[f"{stem}{name}.weight"][torch.from_numpy(order).long()])
        down = old[f"{stem}down_proj.weight"].double().numpy().T
        ridge = np.sqrt(DAMPING * np.square(z[i]).sum(0).mean())
        rows = np.vstack([z[i], ridge * np.eye(z[i].shape[1])])
        expected = np.linalg.lstsq(rows[:, order], rows @ down, rcond=None)[0].T
        # z and its covariance are float32: 1e-6 over the ridge's share of the largest eigenvalue, at most 100
        torch.testing.assert_close(
            new[f"{stem}down_proj.weight"].double(),
            torch.from_numpy(expected),
            rtol=0,
            atol=1e-4 * np.abs(expected).max(),
        )
        narrow += len(order) < 90
    assert narrow >= 2


def test_it_is_an_ordinary_smaller_mlp(dropped):
    source, output, report = dropped
    assert {p for mlp in report.layers.values() for _, p in mlp.items()} == {DENSE}
    assert report.ratio.mlp == pytest.approx(0.2, abs=4 / 270)
    counted = sum(t.numel() for name, t in stored(output).items() if ".mlp." in name)
    assert counted == report.parameters.mlp <= 0.8 * report.parameters.mlp_dense
    assert all(check.ok for check in verify(output, recorded, source))
    predicted = [m.drop_loss or 0.0 for m in report.matrices if m.name == "down_proj"]
    assert predicted_losses(output) == predicted and max(predicted) > 0
    model = load_pretrained(output)
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == [m.width for m in report.layers.values()]


def test_the_loss_of_dropping_is_the_quadratic_form(tiny_llama, tmp_path, monkeypatch):
    """1/2 tr((W - W')^T A (W - W') G) of what is stored, from the statistics on disk."""
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.calibration.quick_products", nullcontext)
    stop_before(monkeypatch, "factor", 1)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "out", from_dict(ONLY), progress=False)
    sums = [load_file(tmp_path / "out" / ".unfinished" / f"statistics-{i:05d}-0.bin") for i in range(3)]
    monkeypatch.undo()
    report = compress(tiny_llama, tmp_path / "out", from_dict(ONLY), resume=True, progress=False)
    z, old, new = read_by_down(tiny_llama, ONLY), stored(tiny_llama), stored(tmp_path / "out")
    for i, order in enumerate(orders(tmp_path / "out")):
        name, tokens = f"model.layers.{i}.mlp.down_proj.weight", len(z[i])
        change = old[name].double().numpy().T.copy()
        change[order] -= new[name].double().numpy().T
        a, g = z[i].T @ z[i] / tokens, sums[i]["down_gradients"].numpy() / tokens
        a, g = (c + DAMPING * c.diagonal().mean() * np.eye(len(c)) for c in (a, g))
        record = report.matrices[3 * i + 2]
        if record.drop_loss is None:
            assert len(order) == 90
        else:
            assert record.drop_loss == pytest.approx(0.5 * np.trace(change.T @ a @ change @ g), rel=1e-4)


@pytest.mark.parametrize(("count", "form"), [(1, "interpolative"), (2, "interpolative"), (5, "pair"), (1, "pair")])
def test_it_composes_with_groups_forms_and_fixed_layers(count, form, tiny_llama, tmp_path, capsys):
    """Groups of 90, 45 and 18 neurons beside H = 44: the statistics are on either side."""
    block = {1: 4, 2: 3, 5: 2}[count]
    ranks = {"0.gate_proj": 20, "1.up_proj": 24, "1.down_proj": 12} if count != 2 else {"0.gate_proj": 24}
    ranks = {key: rank // (count * block) * count * block for key, rank in ranks.items()}
    recipe = {**SMALL, "tp_degree": count, "block": block, "form": form, "ranks": ranks, "dense": ["2", "0.up_proj"]}
    report = compress(tiny_llama, tmp_path / "out", from_dict({**recipe, "ratio": 0.25}), progress=False)
    layers = layers_of(load_pretrained(tmp_path / "out").config)
    assert layers == report.layers and layers[2].width == 90 and all(p == DENSE for _, p in layers[2].items())
    assert layers[0].gate.rank == ranks["0.gate_proj"] and layers[0].up == DENSE
    assert min(layers[0].width, layers[1].width) < 90
    counted = sum(t.numel() for name, t in stored(tmp_path / "out").items() if ".mlp." in name)
    assert counted == report.parameters.mlp <= 0.75 * report.parameters.mlp_dense
    for i, order in enumerate(orders(tmp_path / "out")):
        each = np.bincount(order // (90 // count), minlength=count)
        assert each.tolist() == [layers[i].width // count] * count
        assert (np.diff(order // (90 // count)) >= 0).all()
    losses = [m.predicted_loss for m in report.matrices if m.rank]
    assert losses and all(0 < loss < 1 for loss in losses)
    assert main(["verify", str(tmp_path / "out"), "--base", str(tiny_llama)]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert f"{layers[0].width:>5}  gate_proj" in capsys.readouterr().out


def test_a_narrow_groups_loss_is_that_of_the_kept_neurons(tiny_llama, tmp_path, monkeypatch):
    """Groups smaller than H: the covariance of their gradients is cut to what stays, without approximation."""
    recipe = from_dict({**SMALL, "tp_degree": 5, "block": 2, "form": "pair", "ranks": {"gate_proj": 40}, "ratio": 0.3})
    stop_before(monkeypatch, "factor", 1)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    sums = [load_file(tmp_path / "out" / ".unfinished" / f"statistics-{i:05d}-0.bin") for i in range(3)]
    monkeypatch.undo()
    report = compress(tiny_llama, tmp_path / "out", recipe, resume=True, progress=False)
    assert min(mlp.width for mlp in report.layers.values()) < 90
    old, new, rank = stored(tiny_llama), stored(tmp_path / "out"), 40 // 5
    for i, order in enumerate(orders(tmp_path / "out")):
        stem, total = f"model.layers.{i}.mlp.gate_proj.", 0.0
        near = sums[i]["inputs"].numpy() / 160
        near += DAMPING * near.diagonal().mean() * np.eye(44)
        for k, own in enumerate(np.split(order, 5)):
            far = sums[i]["gate_gradients"][k].numpy()[np.ix_(own - 18 * k, own - 18 * k)] / 160
            far += DAMPING * far.diagonal().mean() * np.eye(len(own))
            each = len(own)
            low = new[stem + "u"][:, k * rank : (k + 1) * rank] @ new[stem + "v"][:, k * each : (k + 1) * each]
            change = old[stem + "weight"].numpy().T[:, own] - low.numpy()
            total += 0.5 * np.trace(near @ change @ far @ change.T)
        assert report.matrices[3 * i].predicted_loss == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("stop", [*STEPS, ("spectra", 2), ("backward", 3), ("factor", 3)])
def test_a_stopped_run_resumes_to_the_same_bytes(stop, tiny_llama, tmp_path_factory, tmp_path, monkeypatch):
    made = tmp_path_factory.getbasetemp() / "dropped-once"
    if not made.exists():
        compress(tiny_llama, made, from_dict(MIXED), progress=False)
    stopped_and_resumed(tiny_llama, from_dict(MIXED), stop, made, tmp_path / "out", monkeypatch)
    assert (tmp_path / "out" / "mlp_order.npy").read_bytes() == (made / "mlp_order.npy").read_bytes()
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_damaged_statistics_are_not_factored(tiny_llama, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, "factor", 2)
        compress(tiny_llama, tmp_path / "out", from_dict(MIXED), progress=False)
    names = {path.name for path in (tmp_path / "out" / ".unfinished").iterdir()}
    assert "neurons-00000-0.bin" not in names and {"neurons-00001-0.bin", "dropping-00001-0.bin"} <= names
    path = tmp_path / "out" / ".unfinished" / "neurons-00001-0.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(RuntimeError, match="neurons-00001-0.bin does not hold what was written"):
        compress(tiny_llama, tmp_path / "out", from_dict(MIXED), resume=True, progress=False)


def test_a_layer_without_effect_gives_its_neurons(tmp_path):
    """Down is zero, so nothing that it drops costs anything."""
    dense = save_dense(tmp_path / "dense", "llama")
    tensors = load_file(dense / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    report = compress(dense, tmp_path / "out", from_dict(ONLY), progress=False)
    assert report.layers[1].width == 24 and report.matrices[5].drop_loss == 0.0
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_the_sum_is_the_whole_covariance_in_blocks(monkeypatch):
    monkeypatch.setattr("nxdi_svd_plugin.compress.calibrate.inner.ROWS", 4)
    z = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    total = nothing(11, torch.device("cpu"))
    for part in z:
        add_inner(total, part)
    expected = (z.double().flatten(0, 1).T @ z.double().flatten(0, 1)).float()
    # 7 products of float32 a sample
    torch.testing.assert_close(whole(total), expected, rtol=0, atol=16 * 2**-24 * float(expected.abs().max()))
    assert torch.equal(whole(total), whole(total).T)


def test_the_plan_says_what_it_takes(tmp_path):
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan, without = (make_plan(tmp_path, from_dict({"drop": drop, "tp_degree": 2})) for drop in (True, False))
    assert plan["calibration"]["neurons_memory"] == 4 * (14336**2 * 7 // 4 + 2 * 4096 * 14336)
    work = 14336**3 / 4 * (4 / 3 - 1 / 192) + 14336**2 * 4096 / 2 * 15 / 16
    assert plan["calibration"]["elimination_flop"] == pytest.approx(32 * work, rel=1e-9)
    # factors are made of a copy of the weights that stay; tests/test_compress_rows.py has what was measured
    assert plan["peak_memory"]["bytes"] - without["peak_memory"]["bytes"] == 4 * 3 * 14336 * 4096
    assert plan["peak_memory"]["bytes"] < 6 * 2**30
    sums = 8 * ((2 + 3 * 2) * 4096**2 + 3 * 14336)  # two near sides, three far ones in groups, three sums of squares
    assert plan["calibration"]["disk_statistics"] == 32 * (sums + 4 * 14336**2)
    assert "1.78 GiB for the covariance of a layer's neurons" in plan_text(plan)
    assert "what stays of them and the ranks are chosen together" in plan_text(plan)
    assert "dropping neurons" not in plan_text(without)


@pytest.mark.parametrize(
    ("changes", "drops"),
    [
        ({"ratio": 0.15}, True),
        ({"ratio": 0.15, "form": "pair", "dense": ["gate_proj", "0"]}, True),
        ({"ratio": 0.149}, False),
        ({}, False),
        ({"ratio": 0.5, "drop": False}, False),
        ({"ratio": 0.05, "drop": True}, True),
        ({"ratio": 0.5, "drop": None, "allocation": "uniform"}, False),
        ({"ratio": 0.5, "ranks": {"up_proj": 128}}, False),
        ({"ratio": 0.5, "dense": list(PROJECTIONS)}, False),
        ({"recipe": "paper", "ratio": 0.5}, False),
    ],
)
def test_without_a_word_the_ratio_decides(changes, drops):
    recipe = from_dict(changes)
    assert recipe.drops == drops and from_dict(recipe.to_dict()) == recipe
    assert recipe.with_changes({"ratio": 0.1}).drops == bool(recipe.drop)


def test_a_ratio_by_itself_is_compressed_as_if_drop_were_true(tiny_llama, tmp_path):
    sizes = {"block": 4, "ratio": 0.3, "calibration": {"samples": 4, "length": 40}}
    for name, drop in (("told", True), ("untold", None)):
        compress(tiny_llama, tmp_path / name, from_dict({**sizes, "drop": drop}), progress=False)
    told, untold = stored(tmp_path / "told"), stored(tmp_path / "untold")
    assert set(told) == set(untold) and all(torch.equal(told[name], untold[name]) for name in told)
    assert any(mlp.width < 90 for mlp in Report.read(tmp_path / "untold").layers.values())


def test_it_needs_losses_that_compare():
    with pytest.raises(RecipeError, match="drop needs losses .* use allocation global"):
        from_dict({"drop": True, "allocation": "uniform"})
    with pytest.raises(RecipeError, match="drop needs losses"):
        from_dict({"recipe": "paper", "drop": True})
    with pytest.raises(RecipeError, match="drop is 1; expected true, false or null"):
        from_dict({"drop": 1})
