"""Widths and ranks decided together: against every choice of a tiny model, within the budget, in few patterns."""

import itertools
import logging

import numpy as np
import pytest

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.compress.plan.widths import Curve, all_stay, check_budget, global_widths, layer_widths
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

HIDDEN, NEURONS = 12, 24
NAMES = ("gate_proj", "up_proj", "down_proj")


def config_of(layers, hidden=HIDDEN, intermediate=NEURONS):
    raw = {"hidden_size": hidden, "num_attention_heads": 2, "vocab_size": 30, "num_hidden_layers": layers}
    return SourceConfig(None, raw, "llama", hidden, intermediate, layers)


def problem(config, recipe, seed=0):
    """Falling energies, and curves of dropping that rise faster and faster."""
    rng = np.random.default_rng(seed)
    side = config.hidden
    energies = {
        (i, n): np.sort(rng.exponential(size=side) * np.exp(-4 * np.arange(side) / side))[::-1] * rng.uniform(0.2, 3)
        for i in range(config.layers)
        for n in NAMES
    }
    curves = {}
    for i in range(config.layers):
        widths = layer_widths(config, recipe, i)
        gone = 1 - np.array(widths) / widths[0]
        share = (1 - 0.7 * gone).tolist()
        curves[i] = Curve(tuple(widths), (rng.uniform(0.5, 4) * gone**1.7).tolist(), dict.fromkeys(NAMES[:2], share))
    return energies, curves


def loss_of(mlp, curve, energies, layer):
    at = curve.widths.index(mlp.width)
    found = curve.loss[at]
    for name, p in mlp.items():
        if p != DENSE:
            share = curve.shares[name][at] if name in curve.shares else 1.0
            found += 0.5 * share * energies[layer, name][p.rank // p.groups :].sum()
    return found


def every_mlp(curve, form, groups, block):
    """All widths, and every rank that saves something, of one layer."""
    for width in curve.widths:
        part = width // groups
        ranks = [r for r in range(block, min(HIDDEN, part), block)]
        if form == "interpolative":
            offered = [LowRank(groups * r, ((0, r),), groups) for r in ranks if r * (HIDDEN + part - r) < HIDDEN * part]
        else:
            offered = [LowRank(groups * r, (), groups) for r in ranks if r * (HIDDEN + part) < HIDDEN * part]
        for row in itertools.product([*offered, DENSE], repeat=3):
            yield Mlp(width, *row)


@pytest.mark.parametrize(("form", "groups", "ratio"), [("interpolative", 1, 0.2), ("pair", 1, 0.35), ("pair", 2, 0.3)])
def test_the_choice_is_the_best_of_all(form, groups, ratio):
    config = config_of(2)
    recipe = from_dict({"drop": True, "block": 4, "form": form, "tp_degree": groups, "ratio": ratio})
    energies, curves = problem(config, recipe)
    layers = global_widths(config, recipe, energies, curves)
    rows = [
        [
            (mlp.parameters(HIDDEN), loss_of(mlp, curves[i], energies, i))
            for mlp in every_mlp(curves[i], form, groups, 4)
        ]
        for i in range(2)
    ]
    cost, loss = (np.array(column) for column in zip(*rows[0], strict=True))
    cost = np.add.outer(cost, [c for c, _ in rows[1]])
    loss = np.add.outer(loss, [v for _, v in rows[1]])
    budget = int((1 - ratio) * config.mlp_parameters)
    filled = loss[(cost <= budget) & (cost >= 0.999 * budget)]
    best = filled.min() if len(filled) else loss[cost <= budget].min()
    assert sum(mlp.parameters(HIDDEN) for mlp in layers.values()) <= budget
    assert sum(loss_of(mlp, curves[i], energies, i) for i, mlp in layers.items()) == pytest.approx(best, rel=1e-12)
    assert {mlp.width for mlp in layers.values()} != {NEURONS}


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_budget_is_met_to_a_thousandth(ratio, groups, caplog):
    config = config_of(30, 72, 192)
    recipe = from_dict({"drop": True, "block": 8, "tp_degree": groups, "ratio": ratio})
    with caplog.at_level(logging.WARNING):
        layers = global_widths(config, recipe, *problem(config, recipe))
    used = sum(mlp.parameters(72) for mlp in layers.values()) / (config.mlp_parameters * (1 - ratio))
    assert 0.999 <= used <= 1 and not caplog.records
    assert all(mlp.width % (8 * groups) == 0 for mlp in layers.values())


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_pattern_is_width_and_ranks(most):
    config = config_of(12, 72, 192)
    recipe = from_dict({"drop": True, "tp_degree": 1, "block": 8, "ratio": 0.25, "max_patterns": most})
    energies, curves = problem(config, recipe)
    layers = global_widths(config, recipe, energies, curves)
    assert 1 <= len(set(layers.values())) <= most
    assert sum(mlp.parameters(72) for mlp in layers.values()) <= 0.75 * config.mlp_parameters
    free = global_widths(config, from_dict({**recipe.to_dict(), "max_patterns": 0}), energies, curves)
    ours, best = (sum(loss_of(m, curves[i], energies, i) for i, m in x.items()) for x in (layers, free))
    assert best <= ours * (1 + 1e-9)


def test_what_the_recipe_fixes_stays():
    config = config_of(4)
    recipe = {
        "drop": True,
        "tp_degree": 1,
        "block": 4,
        "ratio": 0.3,
        "dense": ["1", "down_proj"],
        "ranks": {"2.up_proj": 8},
    }
    recipe = from_dict({**recipe, "form": "pair"})
    energies, curves = problem(config, recipe)
    assert layer_widths(config, recipe, 1) == [NEURONS] and curves[1].widths == (NEURONS,)
    layers = global_widths(config, recipe, energies, curves)
    assert layers[1] == Mlp(NEURONS, DENSE, DENSE, DENSE)
    assert layers[2].up == LowRank(8) and all(mlp.down == DENSE for mlp in layers.values())
    assert sum(mlp.width for mlp in layers.values()) < 4 * NEURONS
    few = from_dict({**recipe.to_dict(), "max_patterns": 1})
    with pytest.raises(RecipeError, match="max_patterns 1 and the budget leave no room for what the recipe fixes"):
        global_widths(config, few, energies, curves)


def test_all_dense_is_a_smaller_dense_mlp():
    config = config_of(6, 72, 192)
    recipe = from_dict({"drop": True, "tp_degree": 1, "block": 8, "ratio": 0.25, "dense": list(PROJECTIONS)})
    assert set(decide_ranks(config, recipe).values()) == {Mlp(192, DENSE, DENSE, DENSE)}
    layers = global_widths(config, recipe, *problem(config, recipe))
    assert all(p == DENSE for mlp in layers.values() for _, p in mlp.items())
    assert sum(mlp.width for mlp in layers.values()) == 6 * 192 * 0.75


def test_a_budget_that_no_width_meets_is_refused():
    config = config_of(2)
    recipe = from_dict({"drop": True, "tp_degree": 1, "block": 4, "ratio": 0.4, "dense": ["0", "1"]})
    energies, _ = problem(config, recipe)
    with pytest.raises(RecipeError, match="the smallest allowed ranks need"):
        global_widths(config, recipe, energies, {0: all_stay(config), 1: all_stay(config)})


def test_widths_keep_a_quarter_and_whole_blocks_of_every_group():
    config = config_of(1, 72, 190)
    assert layer_widths(config, from_dict({"drop": True, "tp_degree": 1, "block": 8}), 0) == [190, *range(184, 47, -8)]
    assert layer_widths(config, from_dict({"drop": True, "block": 16, "tp_degree": 2}), 0) == [190, 160, 128, 96, 64]
    assert layer_widths(config, from_dict({"block": 8, "tp_degree": 1}), 0) == [190]


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("form", ["pair", "interpolative"])
def test_the_budget_is_refused_where_the_smallest_choices_exceed_it(form, drop):
    """Against the costs of every choice of a tiny model, one projection fixed and one limited."""
    config, ranks = config_of(2), {"0.up_proj": 4}
    limits = {(1, "down_proj"): 0}
    recipe = {"form": form, "drop": drop, "block": 2, "tp_degree": 2, "ranks": ranks}
    curve = Curve(tuple(layer_widths(config, from_dict({**recipe, "ratio": 0.1}), 0)), (), {})
    need = 0
    for layer in range(2):
        fits = [m for m in every_mlp(curve, form, 2, 2) if layer or getattr(m["up_proj"], "rank", 0) == 4]
        fits = [m for m in fits if not layer or m["down_proj"] == DENSE]
        need += min(mlp.parameters(HIDDEN) for mlp in fits)
    most = 1 - need / config.mlp_parameters
    check_budget(config, from_dict({**recipe, "ratio": most - 1e-9}), limits)
    with pytest.raises(RecipeError, match=rf"allows need {need}; zeros or repeated neurons keep 1 projections"):
        check_budget(config, from_dict({**recipe, "ratio": most + 1 / config.mlp_parameters}), limits)
