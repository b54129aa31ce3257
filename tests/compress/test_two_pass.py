"""Every recipe but the paper's on tiny models: same function as the pair form, budget, order of I, resume."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.compress.plan.cost import disk_needs
from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
from nxdi_svd_plugin.compress.run import run as loop
from nxdi_svd_plugin.compress.run.job import prepare
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError, RecipeError
from nxdi_svd_plugin.modeling.configs import layers_of
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained
from nxdi_svd_plugin.recipe import from_dict, preset
from nxdi_svd_plugin.stored.layers import parse_layers
from nxdi_svd_plugin.stored.projection import DENSE

SMALL = {"tp_degree": 1, "block": 4, "ratio": 0.1, "calibration": {"samples": 4, "length": 40}}
IDS = torch.arange(3, 60)[None]
STEPS = [(kind, 1) for kind in loop.WORK if not kind.startswith("scale")]
"""Before the first step of every kind that a recipe has which does not scale losses."""


def logits(directory):
    model = load_model(directory, dtype=torch.float64)
    with torch.no_grad():
        return model(IDS).logits


def stored(directory):
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """`tiny_llama` with the default recipe: interpolative and dense projections, reordered layers."""
    output = tmp_path_factory.mktemp("two_pass") / "made"
    report = compress(tiny_llama, output, from_dict({**SMALL, "dense": ["1.up_proj"]}), progress=False)
    return output, report


def test_budget_form_and_files(made, tiny_llama):
    output, report = made
    config = json.loads((output / "config.json").read_text())
    layers = parse_layers(config["svd_config"], 3, 90)
    forms = {p.form for mlp in layers.values() for _, p in mlp.items()}
    assert "interpolative" in forms and config["svd_config"]["recipe"]["objective"] == "two_sided"
    counted = sum(t.numel() for name, t in stored(output).items() if ".mlp." in name)
    assert counted == report.parameters.mlp <= 0.9 * report.parameters.mlp_dense
    # three layers of 44 x 90 in blocks of 4: the smallest step is 4 (44 + 90 - 2 * 40 - 4) = 200 of 35640 parameters
    assert counted >= 0.9 * report.parameters.mlp_dense - 200
    ranked = [m for m in report.matrices if m.rank]
    assert all(0 < m.predicted_loss < 1 and m.growth < 10 and m.relative_ridge > 0 for m in ranked)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("objective", ["two_sided", "input"])
def test_interpolative_and_pair_are_the_same_function(family, objective, request, tmp_path):
    """Same ranks, same objective: only the parametrisation differs, and the order of I changes nothing."""
    source = request.getfixturevalue(f"tiny_{family}")
    groups = 1 if family == "llama" else 2
    changes = {**SMALL, "allocation": "uniform", "ranks": {"gate_proj": 24, "up_proj": 32, "1.down_proj": 16}}
    changes |= {"dense": ["down_proj", "2.up_proj"], "objective": objective, "ratio": None, "tp_degree": groups}
    changes["refit"] = False  # which rounds products
    for form in ("pair", "interpolative"):
        compress(source, tmp_path / form, from_dict({**changes, "form": form}), progress=False)
    pair, other = logits(tmp_path / "pair"), logits(tmp_path / "interpolative")
    assert float((pair - logits(source)).abs().max()) > 1e-2  # the ranks do cut something
    # factors are stored in float32: 2^-24 relative per product, growth of C below 10, three layers
    torch.testing.assert_close(other, pair, rtol=0, atol=3e-4 * float(pair.abs().max()))
    saved = {f: sum(t.numel() for t in stored(tmp_path / f).values()) for f in ("pair", "interpolative")}
    squares = 3 * 24**2 + 2 * 32**2 + 16**2
    assert saved["pair"] - saved["interpolative"] == squares / groups  # g squares of r / g


@pytest.mark.parametrize(("groups", "ranks"), [(1, (20, 24, 28)), (2, (24, 40, 32)), (3, (48, 24, 36))])
def test_input_objective_equals_the_papers_path(groups, ranks, tiny_llama, tmp_path):
    """The two-pass loop and the one-pass loop give the same W' for the paper's objective, from either side of a group:
    of 45 neurons beside H = 44, and of 30."""
    ranks = dict(zip(("gate_proj", "up_proj", "down_proj"), ranks, strict=True))
    paper = from_dict({"recipe": "paper", **SMALL, "ratio": None, "ranks": ranks, "tp_degree": groups})
    compress(tiny_llama, tmp_path / "paper", paper, progress=False)
    compress(tiny_llama, tmp_path / "other", paper.with_changes({"form": "interpolative"}), progress=False)
    expected = logits(tmp_path / "paper")
    torch.testing.assert_close(logits(tmp_path / "other"), expected, rtol=0, atol=3e-4 * float(expected.abs().max()))


def test_the_stored_order_maps_back_to_the_source(made, tiny_llama):
    output, _ = made
    orders, source, new = np.load(output / "mlp_order.npy"), stored(tiny_llama), stored(output)
    assert orders.shape == (3, 90) and (np.sort(orders, 1) == np.arange(90)).all()
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(new[name], source[name][torch.from_numpy(orders[1]).long()])


def test_streamed_statistics_equal_the_whole_models_autograd(tiny_llama, tmp_path, monkeypatch):
    """Hooks on the whole model, the same labels, no bfloat16; the I x I covariance is formed here and projected."""
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.calibration.quick_products", nullcontext)
    stop_before(monkeypatch, "spectra", 2)  # the second layer's statistics are on disk
    with pytest.raises(KeyboardInterrupt):
        compress(tiny_llama, tmp_path / "out", from_dict(SMALL), progress=False)
    samples = prepare(tiny_llama, from_dict(SMALL)).samples
    model, labels = load_model(tiny_llama, dtype=torch.float32).requires_grad_(False), []
    seen = {}
    mlp = model.model.layers[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        watch(getattr(mlp, name), name, seen)
    for number, ids in enumerate(samples):
        embedded = model.model.embed_tokens(ids[None]).requires_grad_(True)
        out = model(inputs_embeds=embedded).logits[0]
        generator = torch.Generator().manual_seed(number)
        uniform = torch.rand(len(ids), 1, generator=generator)
        labels = (out.detach().double().softmax(-1).cumsum(-1) <= uniform).sum(-1)
        torch.nn.functional.cross_entropy(out, labels, reduction="sum").backward()
    sums = load_file(tmp_path / "out" / ".unfinished" / "statistics-00001-0.bin")
    x, g = (
        {k: torch.cat(v[0]).double() for k, v in seen.items()},
        {k: torch.cat(v[1]).double() for k, v in seen.items()},
    )
    w = {k: getattr(mlp, k).weight.double() for k in seen}
    expected = {
        "inputs": x["gate_proj"].T @ x["gate_proj"],
        "outputs": (w["down_proj"] @ (x["down_proj"].T @ x["down_proj"]) @ w["down_proj"].T)[None],
        "down_gradients": g["down_proj"].T @ g["down_proj"],
        "gate_gradients": (w["gate_proj"].T @ (g["gate_proj"].T @ g["gate_proj"]) @ w["gate_proj"])[None],
        "up_gradients": (w["up_proj"].T @ (g["up_proj"].T @ g["up_proj"]) @ w["up_proj"])[None],
        "gate_squares": g["gate_proj"].square().sum(0),
        "up_squares": g["up_proj"].square().sum(0),
        "down_squares": x["down_proj"].square().sum(0),
    }
    assert set(sums) == set(expected)
    for key, value in expected.items():
        # float32 activations and gradients: a few 1e-6 of the largest entry
        torch.testing.assert_close(sums[key], value, rtol=0, atol=2e-5 * float(value.abs().max()), msg=key)


def watch(layer, name, seen):
    inputs, gradients = seen.setdefault(name, ([], []))

    def hook(_, args, output):
        inputs.append(args[0].detach()[0])
        output.register_hook(lambda gradient: gradients.append(gradient[0]))

    layer.register_forward_hook(hook)


def stopped_and_resumed(dense, recipe, stop, whole, output, monkeypatch):
    """The report of a run that was stopped before a step and resumed, whose tensors are those of the run in `whole`."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, *stop)
        compress(dense, output, recipe, progress=False)
    assert not (output / "config.json").exists()
    report = compress(dense, output, recipe, resume=True, progress=False)
    expected, found = stored(whole), stored(output)
    assert set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in found)
    return report


def stop_before(monkeypatch, kind, number):
    """Stop a run just before its `number`-th step of a kind, as a power cut would."""
    original, count = loop.WORK[kind], iter(range(1, 10**6))

    def stopping(run, step):
        if next(count) == number:
            raise KeyboardInterrupt
        return original(run, step)

    monkeypatch.setitem(loop.WORK, kind, stopping)


@pytest.mark.parametrize("stop", [*STEPS, ("forward", 2), ("backward", 3), ("factor", 3)])
def test_a_stopped_run_resumes_to_the_same_bytes(stop, made, tiny_llama, tmp_path, monkeypatch):
    output, recipe = tmp_path / "out", from_dict({**SMALL, "dense": ["1.up_proj"]})
    stopped_and_resumed(tiny_llama, recipe, stop, made[0], output, monkeypatch)
    assert (output / "mlp_order.npy").read_bytes() == (made[0] / "mlp_order.npy").read_bytes()


def test_ranks_of_a_model_equal_brute_force(tiny_llama, tmp_path):
    """All 4^9 ways to choose ranks 12, 24, 36 or dense; the losses come from the report of models of these ranks."""
    small = {**SMALL, "block": 12}
    losses = {}
    for rank in (12, 24, 36):
        ranks = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), rank)
        recipe = from_dict({**small, "ratio": None, "allocation": "uniform", "ranks": ranks})
        made = compress(tiny_llama, tmp_path / str(rank), recipe, progress=False)
        losses |= {(m.layer, m.name, rank): m.predicted_loss for m in made.matrices}
    report = compress(tiny_llama, tmp_path / "out", from_dict(small), progress=False)
    keys = [(m.layer, m.name) for m in report.matrices]
    cost = np.array([*(r * (44 + 90 - r) for r in (12, 24, 36)), 44 * 90])
    spent, lost = np.zeros(1, dtype=int), np.zeros(1)
    for key in keys:
        loss = np.array([*(losses[(*key, r)] for r in (12, 24, 36)), 0.0])
        spent, lost = np.add.outer(spent, cost).ravel(), np.add.outer(lost, loss).ravel()
    best = lost[spent <= 0.9 * 9 * 44 * 90].min()
    found = sum(m.predicted_loss or 0.0 for m in report.matrices)
    assert len(lost) == 4**9 and 0 < found == pytest.approx(best, rel=1e-9)


def test_pattern_limit_reaches_the_config(tiny_llama, tmp_path):
    compress(tiny_llama, tmp_path / "one", from_dict({**SMALL, "max_patterns": 1}), progress=False)
    model = load_pretrained(tmp_path / "one")
    layers = layers_of(model.config).values()
    assert len({tuple((p.form, getattr(p, "rank", 0)) for _, p in mlp.items()) for mlp in layers}) == 1


def test_pattern_limit_beside_projections_that_are_fixed(tiny_llama, tmp_path):
    """Fixed projections count as patterns; a limit that they exceed is refused, never ignored."""
    fixed = {**SMALL, "dense": ["1.up_proj"], "ranks": {"2.gate_proj": 20}}
    compress(tiny_llama, tmp_path / "three", from_dict({**fixed, "max_patterns": 3}), progress=False)
    layers = layers_of(load_pretrained(tmp_path / "three").config)
    assert layers[1].up == DENSE and layers[2].gate.rank == 20
    compress(tiny_llama, tmp_path / "two", from_dict({**SMALL, "dense": [1], "max_patterns": 2}), progress=False)
    layers = layers_of(load_pretrained(tmp_path / "two").config)
    assert all(p == DENSE for _, p in layers[1].items())
    assert len({tuple(getattr(p, "rank", 0) for _, p in mlp.items()) for mlp in layers.values()}) == 2
    both = {**SMALL, "dense": ["0.gate_proj"], "ranks": {"1.gate_proj": 20}, "max_patterns": 1}
    with pytest.raises(RecipeError, match="max_patterns 1 and the budget leave no room for what the recipe fixes"):
        compress(tiny_llama, tmp_path / "one", from_dict(both), progress=False)


def test_what_a_layer_without_effect_holds_changes_nothing_else(tiny_llama, tmp_path):
    """Down 1e-20 of the identity: gradients at gate and up whose squares are 1e-40, and losses as small. It gives its
    parameters away, and the other layers are the same bits whatever is in its gate and up."""
    sources, generator = {}, torch.Generator().manual_seed(0)
    for name in ("one", "other"):
        weights = load_file(tiny_llama / "model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"][:] = 1e-20 * torch.eye(44, 90)
        weights["model.layers.1.mlp.up_proj.weight"][:] = 0.2 * torch.randn(90, 44, generator=generator)
        sources[name] = shutil.copytree(tiny_llama, tmp_path / name)
        save_file(weights, sources[name] / "model.safetensors", metadata={"format": "pt"})
    recipe, found = from_dict({**SMALL, "dense": ["1.down_proj"]}), {}
    for name, source in sources.items():
        report = compress(source, tmp_path / f"{name}-out", recipe, progress=False)
        idle = [m for m in report.matrices if m.layer == 1 and m.rank]
        assert len(idle) == 2 and all(0 < m.predicted_loss < 1e-39 and m.rank <= 24 for m in idle)
        found[name] = {n: t for n, t in stored(tmp_path / f"{name}-out").items() if ".layers.1.mlp." not in n}
        assert torch.isfinite(logits(tmp_path / f"{name}-out")).all()
    assert found["one"].keys() == found["other"].keys()
    assert all(torch.equal(tensor, found["other"][n]) for n, tensor in found["one"].items())


def test_a_projection_that_changes_no_loss_takes_no_budget(tiny_llama, tmp_path):
    """With down exactly zero, gate and up have no gradient: the other layers get what these do not need."""
    shutil.copytree(tiny_llama, tmp_path / "dead")
    weights = load_file(tmp_path / "dead" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:] = 0.0
    save_file(weights, tmp_path / "dead" / "model.safetensors", metadata={"format": "pt"})
    recipe = from_dict({**SMALL, "ratio": 0.3, "dense": ["1.down_proj"]})
    report = compress(tmp_path / "dead", tmp_path / "out", recipe, progress=False)
    layers = {layer: [m for m in report.matrices if m.layer == layer] for layer in (1, 2)}
    idle = [m for m in layers[1] if m.rank]
    assert len(idle) == 2 and all(m.predicted_loss == 0.0 and m.rank <= 12 for m in idle)
    assert all(m.rank is None or m.rank > 12 for m in layers[2])


def test_the_plan_states_memory_disk_and_work(tiny_llama):
    plan = make_plan(tiny_llama, from_dict(SMALL))
    calibration = plan["calibration"]
    assert (calibration["disk_hidden_states"], calibration["disk_statistics"]) == (
        4 * 160 * 44 * 7,  # hidden states of all boundaries, behind compressed layers, and what down reads of as many
        # one layer's statistics, six matrices and three rows of energies of every layer
        8 * (5 * 44 * 44 + 3 * 90) + 8 * 3 * (6 * 44 * 44 + 3 * 44),
    )
    assert (calibration["eigendecompositions"], calibration["eigendecomposition_side"]) == (9, 44)
    assert calibration["flop"] > 3 * calibration["flop_paper"]
    assert plan["ratio"]["mlp"] == pytest.approx(0.1, abs=1e-4)
    assert "TFLOP" in plan_text(plan) and "allocation global" in plan_text(plan)
    paper = make_plan(tiny_llama, from_dict({**SMALL, "recipe": "paper"}))
    assert paper["calibration"]["disk_statistics"] == 8 * (44 * 44 * (2 + 5) + 3 * 44)  # of one layer
    assert paper["peak_memory"]["bytes"] < plan["peak_memory"]["bytes"]


@pytest.mark.parametrize(("groups", "side"), [(2, 44), (3, 30), (9, 10)])
def test_the_plan_states_what_groups_cost(groups, side, tiny_llama):
    """Sums of the smaller side of every group: more of them while that is H, and less again when it is I / g."""
    recipe = from_dict({**SMALL, "tp_degree": groups, "block": 1, "dense": [0]})
    plan = make_plan(tiny_llama, recipe)
    squares, narrow = groups * side * side, side < 44
    one = 3 * squares + 2 * 44 * 44 + (0 if narrow else 3 * 90)
    kept = 3 * groups * side * (side + 1) + (3 * squares + 44 * 44 if narrow else squares + 2 * 44 * 44)
    assert plan["calibration"]["disk_statistics"] == 8 * (one + 3 * kept)
    found = plan["calibration"]["eigendecompositions"], plan["calibration"]["eigendecomposition_side"]
    assert found == (groups * 6, side) and f"{groups * 6} eigendecompositions of {side} x {side}" in plan_text(plan)
    assert plan["groups"] == groups


def test_disk_and_contradictions_are_checked_first(tiny_llama, tmp_path, monkeypatch):
    disk = disk_needs(prepare(tiny_llama, from_dict(SMALL)).config, from_dict(SMALL), 160, processes=2)
    assert disk.states == 4 * 160 * 44 * 8  # one boundary more, between the layers of two processes
    assert disk.spectra == 8 * 2 * (5 * 44 * 44 + 3 * 90) + 8 * 3 * (6 * 44 * 44 + 3 * 44)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.job.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="recipe: paper"):
        compress(tiny_llama, tmp_path / "full", from_dict(SMALL), progress=False)
    with pytest.raises(RecipeError, match="objective two_sided"):
        from_dict({"objective": "input"})
    with pytest.raises(RecipeError, match="max_patterns"):
        from_dict({"recipe": "paper", "max_patterns": 3})
    with pytest.raises(RecipeError, match="multiple of the block"):
        prepare(tiny_llama, from_dict({**SMALL, "ranks": {"gate_proj": 6}}))
    assert preset("paper").form == "pair" and preset("default").form == "interpolative"
