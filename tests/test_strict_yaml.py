"""Recipe files: numbers as in JSON, keys once, sizes with units."""

import json

import pytest

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import from_dict, from_yaml
from nxdi_svd_plugin.strict_yaml import read_yaml, size_of


def read(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, "recipe r.yaml")


@pytest.mark.parametrize("number", ["1e-1", "1E-1", "1e1", "1.5e3", "1.e+2", ".5e0", "-2e-3", "+7e2", "0.1", "12"])
def test_numbers_are_those_of_json(tmp_path, number):
    as_json = number.removeprefix("+").replace("1.e", "1e").replace(".5e0", "0.5e0") if "e" in number else number
    found = read(tmp_path, f"ratio: {number}")["ratio"]
    assert found == json.loads(as_json) and isinstance(found, (int, float))


@pytest.mark.parametrize("word", ["e1", "1e", "1e-", "v1e3", "builtin", "1e5x", "'1e5'"])
def test_words_stay_words(tmp_path, word):
    assert read(tmp_path, f"text: {word}")["text"] == word.strip("'")


def test_a_recipe_with_an_exponent_is_a_ratio(tmp_path):
    (tmp_path / "r.yaml").write_text("ratio: 1e-1\nshard_size: 5GB\n")
    recipe = from_yaml(tmp_path / "r.yaml")
    assert recipe.ratio == 0.1 and recipe.shard_size == 5_000_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio: 0.1\nblock: 64\nratio: 0.2", "r.yaml is not valid YAML: ratio twice"),
        ("calibration: {samples: 2, samples: 3}", "samples twice"),
        ("block: 010", "010 is no plain number"),
        ("seed: 1:30", "1:30 is no plain number"),
        ("text: 2026-13-45", "r.yaml is not valid YAML: month must be in 1..12"),
        ("ranks:\n  3: 1\n  '3': 2", "3 twice"),
    ],
)
def test_what_is_no_recipe_file(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, text)


def test_merged_keys_may_be_overridden_and_a_byte_order_mark_is_none_of_them(tmp_path):
    assert read(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")["b"] == {"x": 3, "y": 2}
    assert read(tmp_path, b"\xef\xbb\xbfratio: 0.1") == {"ratio": 0.1}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500 MB", 5 * 10**8),
        ("5GiB", 5 * 2**30),
        ("1.5kb", 1500),
        ("2T", 2 * 10**12),
        ("4096", 4096),
        ("7B", 7),
        (" 1 KiB ", 1024),
    ],
)
def test_sizes(text, size):
    assert size_of(text, "shard_size") == size == from_dict({"shard_size": text}).shard_size


@pytest.mark.parametrize("text", ["", "GB", "5 gigabytes", "-5GB", "5XB", "5iB", "nan", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="shard_size is .*expected a size such as 5GB"):
        from_dict({"shard_size": text})


def test_a_size_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="at least 1"):
        from_dict({"shard_size": "0GB"})
