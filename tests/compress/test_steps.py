"""The list of steps of every kind of recipe: complete, and every step after those whose results it reads."""

import pytest

from nxdi_svd_plugin.compress.run.steps import Step, schedule
from nxdi_svd_plugin.recipe import from_dict

RECIPES = {
    "paper": {"recipe": "paper"},
    "default": {},
    "two-sided uniform": {"allocation": "uniform"},
    "interpolative input": {"objective": "input", "allocation": "uniform"},
    "scaled": {"scale": "builtin-mixed"},
}


def names(recipe, layers, processes):
    return [step.name for step in schedule(from_dict(RECIPES[recipe]), layers, processes)]


def test_the_papers_one_pass_takes_layer_after_layer():
    assert names("paper", 2, 1) == [
        *("embed", "copy"),
        *("forward 0", "spectra 0", "factor 0"),
        *("forward 1", "spectra 1", "factor 1"),
    ]


def test_the_default_goes_forward_back_and_forward_again():
    assert names("default", 2, 1) == [
        *("embed", "forward 0", "forward 1", "head"),
        *("backward 1", "spectra 1", "backward 0", "spectra 0"),
        *("ranks", "copy", "factor 0", "factor 1"),
    ]


def test_losses_are_measured_between_the_spectra_and_the_ranks():
    before, after = names("default", 2, 1)[:8], names("default", 2, 1)[8:]
    measured = ["scale-embed", "scale-layer 0", "scale-layer 1", "scale-head"]
    assert names("scaled", 2, 1) == [*before, *measured, *after] and after[0] == "ranks"


def test_uniform_ranks_need_no_step_and_the_input_objective_no_gradient():
    assert "ranks" not in names("two-sided uniform", 3, 1)
    assert not {"head", "backward 0"} & set(names("interpolative input", 3, 1))


def test_processes_factor_a_layer_each():
    assert names("paper", 3, 2) == [
        *("embed", "copy"),
        *("forward 0", "forward 1", "spectra 0 1", "factor 0 1"),
        *("forward 2", "spectra 2", "factor 2"),
    ]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("layers", "processes"), [(1, 1), (3, 1), (5, 2), (2, 4)])
def test_every_layer_goes_through_every_kind_once_and_in_order(recipe, layers, processes):
    steps = schedule(from_dict(RECIPES[recipe]), layers, processes)
    for kind in {step.kind for step in steps} - {"embed", "head", "ranks", "copy", "scale-embed", "scale-head"}:
        met = [layer for step in steps if step.kind == kind for layer in step.layers]
        assert sorted(met) == list(range(layers))
    place = {(step.kind, layer): i for i, step in enumerate(steps) for layer in step.layers}
    alone = {step.kind: i for i, step in enumerate(steps) if not step.layers}
    for layer in range(layers):
        assert place["forward", layer] < place["spectra", layer] < place["factor", layer]
        assert alone["embed"] < place["forward", layer] and alone["copy"] < place["factor", layer]
        if ("backward", layer) in place:
            assert max(place["forward", i] for i in range(layers)) < alone["head"] < place["backward", layer]
            assert place["backward", layer] < place["spectra", layer]
        if "ranks" in alone:
            assert place["spectra", layer] < alone["ranks"] < alone["copy"]


def test_a_steps_name_has_its_layers():
    assert Step("factor", (3, 4)).name == "factor 3 4" and Step("head").name == "head"
