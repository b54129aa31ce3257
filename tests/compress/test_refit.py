"""Down fitted again behind compressed layers: against numpy's least squares and transformers' hidden states."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_two_pass import stop_before, stopped_and_resumed, stored

from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.compress.factor.refit import Added, fit_down, parts
from nxdi_svd_plugin.compress.factor.running import RunningMlp
from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
from nxdi_svd_plugin.compress.run import run as loop
from nxdi_svd_plugin.compress.run.job import prepare
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError, RecipeError, SvdError
from nxdi_svd_plugin.evaluate.layer_loss import predicted_losses
from nxdi_svd_plugin.factorize.least_squares import solve
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.report.record import Report, recorded
from nxdi_svd_plugin.stored.layers import Mlp, parse_layers
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, READS, LowRank

HIDDEN, WIDTH, TOKENS, DAMPING = 7, 18, 40, 0.1
PAIR, RUNS, GROUPS = LowRank(5), LowRank(6, ((2, 5), (9, 12))), LowRank(6, ((1, 4),), 2)
SMALL = {"tp_degree": 1, "block": 4, "ratio": 0.25, "calibration": {"samples": 4, "length": 40}, "refit": True}
RECIPES = {
    "interpolative": {**SMALL, "drop": False},
    "groups": {**SMALL, "tp_degree": 2, "block": 3, "drop": False, "ranks": {"0.down_proj": 24, "1.gate_proj": 24}},
    "pair": {**SMALL, "form": "pair", "drop": False, "ranks": {"0.down_proj": 20}},
    "dropped": {**SMALL, "drop": True, "ranks": {"0.gate_proj": 20, "1.up_proj": 24, "1.down_proj": 28}},
    "dropped alone": {**SMALL, "drop": True, "dense": list(PROJECTIONS)},
}
IDS = torch.arange(3, 60)[None]


def whole_far(projection, far, width):
    """far with the identity at the pivots, and with zeros between groups: near @ it is [H, w]."""
    if far is None:
        return np.eye(width)
    each, part = projection.rank // projection.groups, width // projection.groups
    kept = [i for start, stop in projection.pivots for i in range(start, stop)]
    full, others = np.zeros((projection.rank, width)), [i for i in range(part) if i not in kept]
    for k, block in enumerate(np.split(np.asarray(far, dtype=np.float64), projection.groups, 1)):
        rows = slice(k * each, (k + 1) * each)
        full[rows, [k * part + i for i in others]] = block
        if kept:
            full[rows, [k * part + i for i in kept]] = np.eye(each)
    return full


def refitted_down(z, target, near, far, damping):
    """near [H, r] of min |z far^T near^T - target|^2 + damping m n |(near - near_0) far|^2."""
    ridge = np.sqrt(damping * np.square(z).sum(0).mean())
    rows, wanted = np.vstack([z @ far.T, ridge * far.T]), np.vstack([target, ridge * far.T @ near.T])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def a_layer(gate, up, down, seed=0):
    """A stored layer of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    mlp = Mlp(WIDTH, gate, up, down)
    shapes = mlp.tensors(HIDDEN)
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return LayerFactors(mlp, made, None, {name: {} for name in PROJECTIONS})


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def added(made, damping=DAMPING):
    x, target = inputs(TOKENS, HIDDEN), inputs(TOKENS, HIDDEN, seed=3)
    mlp = RunningMlp(made, lambda name: None, dict.fromkeys(PROJECTIONS, torch.float64))
    z = mlp.neurons(x.float()).double()
    sums = Added.zero(parts(made, "down_proj")[0].shape[1], HIDDEN, torch.device("cpu"))
    for part, wanted in zip(z.split(13), target.split(13), strict=True):
        read = mlp.gathered(part.float()).double()
        sums.add(part, read, read @ parts(made, "down_proj")[0].T, wanted)
    return fit_down(made, sums.total(lambda t: t), damping), z.numpy(), target.numpy()


@pytest.mark.parametrize("down", [PAIR, RUNS, GROUPS, LowRank(6, (), 3), DENSE])
def test_down_is_numpys_least_squares(down):
    """The dense one is that of a layer that dropped neurons."""
    made = a_layer(GROUPS if down == GROUPS else DENSE, DENSE, down)
    found, z, target = added(made)
    (near, far), new = parts(made, "down_proj"), parts(found, "down_proj")[0].numpy()
    full, near = whole_far(down, far, WIDTH), near.numpy()
    # what near reads is float32: its rounding over the ridge's share of the largest eigenvalue, at most WIDTH / DAMPING
    np.testing.assert_allclose(new, refitted_down(z, target, near, full, DAMPING), rtol=0, atol=1e-4)
    before, after = (np.linalg.norm(z @ full.T @ n.T - target) / np.linalg.norm(target) for n in (near, new))
    numbers = found.measured["down_proj"]
    assert numbers["fit_before"] == pytest.approx(before, rel=1e-5)
    assert numbers["fit_after"] == pytest.approx(after, rel=1e-5) and after < before
    changed = {name for name in made.tensors if not torch.equal(found.tensors[name], made.tensors[name])}
    assert changed == {"down_proj.weight" if down == DENSE else "down_proj.v"} and found.mlp == made.mlp


@pytest.mark.parametrize("form", [PAIR, GROUPS])
def test_an_infinite_ridge_changes_nothing(form):
    made = a_layer(form, form, form)
    found = added(made, 1e30)[0]
    assert all(torch.equal(found.tensors[name].float(), made.tensors[name].float()) for name in made.tensors)


def test_neurons_that_are_dead_change_nothing():
    made = a_layer(GROUPS, GROUPS, GROUPS)
    silent = Added.zero(6, HIDDEN, torch.device("cpu"))
    found = fit_down(made, silent, DAMPING)
    assert all(torch.equal(found.tensors[name], made.tensors[name]) for name in made.tensors)


def test_singular_equations_have_a_finite_solution_and_what_is_not_finite_is_refused():
    """Two equal unknowns: they share what one would have."""
    a, b = inputs(9, 3), inputs(9, 2, seed=2)
    twice = torch.cat([a, a[:, :1]], 1)
    found = solve(twice.T @ twice, twice.T @ b)
    expected = np.linalg.lstsq(twice.numpy(), b.numpy(), rcond=None)[0]
    np.testing.assert_allclose(twice.numpy() @ found.numpy(), twice.numpy() @ expected, rtol=0, atol=1e-6)
    with pytest.raises(SvdError, match="sums of a refit are not finite"):
        solve(torch.full((2, 2), torch.nan, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))


def seen(directory, samples):
    """Of every layer, over all tokens: what gate and down read, what the MLP is added to, and what comes out."""
    model, found = load_model(directory, dtype=torch.float32), {}

    def note(i, what):
        return lambda _, args, out: found.setdefault((i, what), []).append((args[0] if what != "out" else out)[0])

    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate_proj.register_forward_hook(note(i, "x"))
        layer.mlp.down_proj.register_forward_hook(note(i, "z"))
        layer.post_attention_layernorm.register_forward_hook(note(i, "middle"))
        layer.mlp.register_forward_hook(note(i, "out"))
    with torch.no_grad():
        for ids in samples:
            model(ids[None])
    return {key: torch.cat(rows).double().numpy() for key, rows in found.items()}


def near_and_far(tensors, layer, name, projection):
    reads, stem = READS[name], f"model.layers.{layer}.mlp.{name}."
    if projection == DENSE:
        return reads.hidden_first(tensors[f"{stem}weight"]).double().numpy(), None
    near, far = projection.from_disk(reads, {key: tensors[stem + key] for key in projection.names(reads)})
    return near.double().numpy(), far.double().numpy()


@pytest.fixture(params=RECIPES)
def pair_of_runs(request, tmp_path, monkeypatch):
    """A source, what a recipe makes of it without refit and with it, in exact products of float32."""
    source = request.getfixturevalue("tiny_qwen3" if request.param == "groups" else "tiny_llama")
    for module in ("calibration", "refitting"):
        monkeypatch.setattr(f"nxdi_svd_plugin.compress.run.{module}.quick_products", nullcontext)
    recipe = from_dict(RECIPES[request.param])
    before = compress(source, tmp_path / "before", replace(recipe, refit=False), progress=False)
    after = compress(source, tmp_path / "after", recipe, progress=False)
    return source, recipe, before, after, tmp_path


def test_every_layer_is_fitted_behind_the_layers_that_transformers_runs(pair_of_runs):
    source, recipe, first, report, folder = pair_of_runs
    samples = prepare(source, recipe).samples
    dense, now = seen(source, samples), seen(folder / "after", samples)
    old, new = stored(folder / "before"), stored(folder / "after")
    records = {(m.layer, m.name): m for m in report.matrices}
    assert report.layers == first.layers and set(old) == set(new)
    fitted = set()
    for (i, name), record in records.items():
        p, stem = record.projection, f"model.layers.{i}.mlp.{name}."
        if name != "down_proj" or (p == DENSE and record.width == 90):
            assert all(torch.equal(old[key], new[key]) for key in old if key.startswith(stem))
            assert record.fit_after is None
            continue
        near, far = near_and_far(old, i, name, p)
        changed, kept = near_and_far(new, i, name, p)
        full = whole_far(p, far, record.width)
        assert p == DENSE or np.array_equal(far, kept)
        read, target = now[i, "z"], dense[i, "middle"] + dense[i, "out"] - now[i, "middle"]
        expected = refitted_down(read, target, near, full, 10 * DAMPING)
        outputs = [read @ full.T @ n.T for n in (near, changed)]
        # states are float32 (1e-6 of the largest), over the ridge's share of the largest eigenvalue (at most 90 / 0.1)
        np.testing.assert_allclose(changed, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
        errors = [np.linalg.norm(y - target) / np.linalg.norm(target) for y in outputs]
        assert (record.fit_before, record.fit_after) == pytest.approx(errors, abs=1e-4)
        assert errors[1] <= errors[0] + 1e-6 and record.fit_after <= record.fit_before
        fitted.add(i)
    assert len(fitted) >= 2
    assert report.refitted and not first.refitted
    assert all(check.ok for check in verify(folder / "after", recorded, source))


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("refit") / "made"
    return output, compress(tiny_llama, output, from_dict(RECIPES["dropped"]), progress=False)


def test_what_goes_on_is_what_transformers_computes(tiny_llama, tmp_path, monkeypatch):
    """The inputs of the last layer, on disk."""
    for module in ("calibration", "refitting"):
        monkeypatch.setattr(f"nxdi_svd_plugin.compress.run.{module}.quick_products", nullcontext)
    recipe, output = from_dict(RECIPES["dropped"]), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, "factor", 3)
        compress(tiny_llama, output, recipe, progress=False)
    behind = np.frombuffer((output / ".unfinished" / "prefix-00002-0.bin").read_bytes(), dtype=np.float32)
    left = {path.name for path in (output / ".unfinished").glob("*-0.bin")}
    assert left & {f"{kind}-{i:05d}-0.bin" for kind in ("hidden", "middle", "prefix") for i in range(4)} == {
        "hidden-00003-0.bin",
        "prefix-00002-0.bin",
    }
    compress(tiny_llama, output, recipe, resume=True, progress=False)
    samples = prepare(tiny_llama, recipe).samples
    dense, now = seen(tiny_llama, samples), seen(output, samples)
    expected = now[1, "middle"] + now[1, "out"]
    np.testing.assert_allclose(behind.reshape(expected.shape), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - dense[1, "middle"] - dense[1, "out"]).max() > 0.1


@pytest.mark.parametrize("stop", [*[(k, 1) for k in loop.WORK if "scale" not in k], ("factor", 2), ("factor", 3)])
def test_a_stopped_run_resumes_to_the_same_bytes(stop, made, tiny_llama, tmp_path, monkeypatch):
    recipe = from_dict(RECIPES["dropped"])
    stopped_and_resumed(tiny_llama, recipe, stop, made[0], tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out" / ".unfinished").exists()


@pytest.mark.parametrize("name", ["prefix-00001", "hidden-00002"])
def test_damaged_states_are_not_read(name, tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, "factor", 2)
        compress(tiny_llama, tmp_path / "out", from_dict(RECIPES["dropped"]), progress=False)
    path = tmp_path / "out" / ".unfinished" / f"{name}-0.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=f"{name}-0.bin does not hold what was written"):
        compress(tiny_llama, tmp_path / "out", from_dict(RECIPES["dropped"]), resume=True, progress=False)


def test_where_nothing_is_compressed_nothing_changes(tiny_llama, tmp_path):
    recipe = from_dict({**SMALL, "allocation": "uniform", "ratio": None, "dense": ["0", "1", "2"]})
    report = compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    old, new = stored(tiny_llama), stored(tmp_path / "out")
    assert set(old) == set(new) and all(torch.equal(old[name], new[name]) for name in old) and not report.refitted


def test_commands_say_what_the_numbers_are_of(made, tiny_llama, tmp_path, capsys):
    output, report = made
    assert Report.read(output).refitted and report.recipe["refit"] is True
    assert parse_layers(json.loads((output / "config.json").read_text())["svd_config"], 3, 90) == report.layers
    assert main(["verify", str(output), "--base", str(tiny_llama)]) == 0
    assert main(["inspect", "--model", str(output)]) == 0
    assert "the output errors are those before the refit" in capsys.readouterr().out
    assert "Then down was fitted again by ridge least squares" in (output / "README.md").read_text()
    assert "output errors are those before the refit, and so are predicted losses" in report.to_text()
    assert len(predicted_losses(output)) == 3


def test_the_plan_says_what_it_takes(tmp_path):
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with_it, without = (make_plan(tmp_path, from_dict({"refit": refit})) for refit in (True, False))
    disk = [plan["calibration"]["disk_hidden_states"] for plan in (with_it, without)]
    assert disk == [4 * 28672 * 4096 * boundaries for boundaries in (37, 35)]  # near of down reads at most 2 x 4,096
    assert without["calibration"]["refit_flop"] == without["calibration"]["refit_memory"] == 0
    assert with_it["calibration"]["refit_flop"] > 2 * 28672 * 32 * 3 * 4096 * 14336
    assert "refit: at most" in plan_text(with_it) and "refit:" not in plan_text(without)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "paper", "refit": True}, "refit needs the hidden states of all layers, which objective input"),
        ({"objective": "input", "allocation": "uniform", "refit": True}, "use objective two_sided"),
        ({"refit": 1}, "refit is 1; expected true, false or null"),
    ],
)
def test_what_cannot_be_refitted_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        from_dict(changes)


def test_the_flag_is_the_key(tiny_llama, capsys):
    assert main(["plan", "--model", str(tiny_llama), "--block", "4", "--no-refit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["refit"] is False


def test_without_a_word_it_is_on_wherever_it_can_be():
    assert from_dict({}).refits and from_dict({"form": "pair", "allocation": "uniform", "max_patterns": 0}).refits
    assert not from_dict({"recipe": "paper"}).refits and not from_dict({"refit": False}).refits
