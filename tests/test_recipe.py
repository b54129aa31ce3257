"""Recipes: YAML below flags, ranges, contradictions, and what is unknown gets a suggestion."""

import argparse
import dataclasses
import json
import math

import pytest

from nxdi_svd_plugin.cli.recipe_options import KEYS, add_recipe_options, recipe_from
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import Calibration, Recipe, from_dict, from_yaml, lookup

YAML = """\
ratio: 0.2
block: 16
ranks: {down_proj: 24, 0.gate_proj: 8}
dense: [1, 2.up_proj]
calibration: {samples: 3, length: 40, seed: 5}
"""


def from_flags(*argv):
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return recipe_from(parser.parse_args(argv))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "recipe.yaml").write_text(YAML)
    return str(tmp_path / "recipe.yaml")


def test_yaml_is_read(path):
    recipe = from_yaml(path)
    assert (recipe.ratio, recipe.block, recipe.tau) == (0.2, 16, 0.5)
    assert recipe.ranks == {"down_proj": 24, "0.gate_proj": 8}
    assert recipe.dense == ("1", "2.up_proj")
    assert recipe.calibration == Calibration(samples=3, length=40, seed=5)


def test_flags_lie_over_yaml_key_by_key(path):
    recipe = from_flags("--recipe", path, "--ratio", "0.3", "--samples", "9", "--calibration", "t.txt", "--rank", "5=7")
    assert (recipe.ratio, recipe.block) == (0.3, 16)
    assert recipe.calibration == Calibration("t.txt", samples=9, length=40, seed=5)
    assert recipe.ranks == {"down_proj": 24, "0.gate_proj": 8, "5": 7}
    assert from_flags("--recipe", path, "--dense", "0").dense == ("0",)
    assert from_flags("--recipe", path) == from_yaml(path)


def test_every_recipe_key_has_a_flag():
    keys = {f.name for f in dataclasses.fields(Recipe)} - {"calibration", "ranks"}
    keys |= {f"calibration.{f.name}" for f in dataclasses.fields(Calibration)}
    assert keys <= set(KEYS.values())


def test_a_saved_recipe_is_the_recipe(path):
    recipe = from_yaml(path)
    assert from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_says_which_keys_it_knows():
    with pytest.raises(RecipeError, match=r"unknown key blok; did you mean 'block'\? \(known keys: .*tau"):
        from_dict({"blok": 3})
    with pytest.raises(RecipeError, match=r"unknown key calibration.sample; did you mean 'samples'"):
        from_dict({"calibration": {"sample": 3}})
    with pytest.raises(RecipeError, match=r"unknown key zzz \(known keys"):
        from_dict({"zzz": 3})
    with pytest.raises(RecipeError, match=r"'bfloat61'; expected one of .*did you mean 'bfloat16'"):
        from_dict({"dtype": "bfloat61"})
    with pytest.raises(RecipeError, match=r"'3.up_porj'; expected a layer .*did you mean 'up_proj'"):
        from_dict({"dense": ["3.up_porj"]})


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan, math.inf, "0.1", True, [0.1]])
def test_ratio_lies_between_0_and_1(ratio):
    with pytest.raises(RecipeError, match="ratio is"):
        from_dict({"ratio": ratio})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"block": 0}, "block is 0"),
        ({"block": 1.5}, "block is 1.5; expected int"),
        ({"block": True}, "block is True; expected int"),
        ({"tau": 0}, "tau is 0; it must be above 0"),
        ({"tau": 1.01}, "tau is 1.01"),
        ({"damping": math.nan}, "damping is nan"),
        ({"damping": math.inf}, "damping is inf"),
        ({"shard_size": 0}, "shard_size 0"),
        ({"tau": 1.0}, "tau is 1.0, .* allocation global does not use it: remove tau or use allocation uniform"),
        ({"recipe": "paper", "damping": 0.2}, "damping is 0.2, which objective input does not use; remove it"),
        ({"ratio_of": "models"}, "did you mean 'model'"),
        ({"ranks": {"down_proj": 0}}, "a rank is an integer of at least 1"),
        ({"ranks": {"down_proj": 2.5}}, "a rank is an integer of at least 1"),
        ({"ranks": {"down_proj": True}}, "a rank is an integer of at least 1"),
        ({"ranks": [3]}, "expected selector: rank"),
        ({"dense": "down_proj"}, "expected a list of selectors"),
        ({"calibration": "t.txt"}, "expected keys such as text"),
        ({"calibration": {"text": 3}}, "calibration.text is 3; expected str"),
        ({"calibration": {"samples": 0}}, "samples must be at least 1"),
        ({"calibration": {"length": 1}}, "length at least 2"),
        ({"calibration": {"seed": -1}}, "seed at least 0"),
        ({"calibration": {"samples": "many"}}, "calibration.samples is 'many'; expected int"),
    ],
)
def test_values_out_of_range(raw, message):
    with pytest.raises(RecipeError, match=message):
        from_dict(raw)


@pytest.mark.parametrize("selector", ["", "x", "-1", "03", "3.", ".up_proj", "up", "1.2.up_proj", "²", "3.5"])
def test_selectors_are_layer_projection_or_both(selector):
    with pytest.raises(RecipeError, match="expected a layer"):
        from_dict({"dense": [selector]})


def test_a_selector_is_either_dense_or_has_a_rank():
    with pytest.raises(RecipeError, match="3.up_proj is both in ranks and in dense"):
        from_dict({"ranks": {"3.up_proj": 4}, "dense": ["3.up_proj"]})


def test_the_most_specific_selector_wins():
    ranks = {"3": 1, "up_proj": 2, "3.up_proj": 3}
    assert lookup(ranks, 3, "up_proj") == (3, 3)
    assert lookup(ranks, 3, "down_proj") == (1, 2)
    assert lookup(ranks, 4, "up_proj") == (2, 1)
    assert lookup(ranks, 4, "down_proj") == (None, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .not there.; give a file, or one of .*paper"),
        (b"ratio: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 0.1", "holds list; expected keys"),
        (b"", "holds NoneType; expected keys"),
        (b"ratio: 2", "recipe.yaml: ratio is 2"),
        (b"recipe: {block: 2}\nratio: 0.3\nneuron: {}", "has ratio beside the object recipe; move them into it"),
        (b"ratoi: 0.1", "recipe.yaml: unknown key ratoi; did you mean 'ratio'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, message):
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        from_yaml(tmp_path / "recipe.yaml")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("entry", ["down_proj", "down_proj=", "down_proj=x", "=3", "down_proj=-1", "down_proj=²"])
def test_a_rank_flag_is_selector_equals_rank(entry):
    with pytest.raises(RecipeError):
        from_flags("--rank", entry)
