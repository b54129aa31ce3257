"""A core with a group of its own holds, moves and computes its share of what dense does; the rows and their pages."""

from pathlib import Path

import pytest
from scripts import script

from nxdi_svd_plugin.errors import RecipeError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", name="script")
def the_script():
    return script("groups")


def test_the_pages_are_in_step_with_the_rows(script):
    for path, made in script.pages(script.load()).items():
        assert script.replaced(path.read_text(), made) == path.read_text()


def test_every_row_says_where_it_comes_from(script):
    for row in script.load():
        assert row["source"] == "simulated, no device run"
        assert row["git"] and not row["git"].endswith("-dirty"), "count again at a commit"


def test_no_core_does_more_than_its_share(script):
    rows = [row for row in script.load() if row["groups"] == row["tp"]]
    assert {(row["model"], row["ratio"], row["tp"]) for row in rows} == {
        (path.stem, ratio, tp) for path in script.CONFIGS for ratio in script.RATIOS for tp in script.DEGREES
    }
    for row in rows:
        left = 1 - row["reached"] + 5e-5  # `reached` is rounded
        for key in ("parameters", "hbm_bytes_1", "hbm_bytes_8"):
            assert script.over_dense(row, key) <= 1.01 * left, (row["model"], row["form"], row["tp"], key)
        assert max(script.over_dense(row, key) for key in script.MEASURES) < 1


def test_cycles_of_a_core_are_its_share_and_the_transposes_of_x(script):
    """At most 1.02 of the share of dense, but where the transposes of X alone are more: 1 + p / (1 - p) t / (D + t) of
    the share of a dense kernel that has them too, with p the ratio reached and t / D = 128 tp / (3 I). X·U through HBM
    costs up to 0.8 %: X is read, and transposed, once for each of its matmuls."""
    above = set()
    for row in (row for row in script.load() if row["groups"] == row["tp"]):
        found, reached = script.cycles(row), row["reached"]
        inner = script.shapes(ROOT / "model_configs" / f"{row['model']}.yaml").intermediate
        share = 128 * row["tp"] / (3 * inner)
        least = 1 + reached / (1 - reached) * share / (1 + share)
        assert found[script.PRODUCTS] <= 1.008
        assert found[script.X_ONLY] <= 1.008 * least
        assert found[script.BOTH] <= 1.005
        assert found[script.FREE] <= 1.008 * (1 + share / (1 - reached))
        if found[script.X_ONLY] > 1.02:
            above.add((row["model"], row["form"], row["tp"], row["ratio"]))
    assert above == {("qwen3-1.7b", "pair", 8, 0.2)}, "docs/kernels.md names the rows"


def test_rows_are_missing_only_where_eq_5_saves_nothing(script):
    """docs/kernels.md counts them."""
    for tp, missing in ((1, 0), (2, 0), (4, 2), (8, 2)):
        own = [row for row in script.load() if row["tp"] == row["groups"] == tp]
        every = {(p.stem, form, ratio) for p in script.CONFIGS for form in script.FORMS for ratio in script.RATIOS}
        left = every - {(row["model"], row["form"], row["ratio"]) for row in own}
        assert len(left) == missing and all(ratio == 0.05 for *_, ratio in left)
        for model, form, ratio in left:
            config = script.shapes(ROOT / "model_configs" / f"{model}.yaml")
            with pytest.raises(RecipeError, match="saves nothing"):
                script.layer_of(config, form, ratio, tp)


def test_a_tile_of_x_is_transposed_once(script):
    """By 128 cycles, whatever the degree; the input of down would be, in a dense kernel that has it as [S, I]."""
    row = next(row for row in script.load() if (row["model"], row["tp"]) == ("qwen3-4b", 8))
    assert script.transposes(row) == (2048 * 20, 2048 * 10)  # H 2560; I / 8 = 1216, 9.5 tiles


def test_the_papers_layout_costs_more_than_dense_at_two_cores_and_a_small_ratio(script):
    rows = [r for r in script.load() if (r["tp"], r["groups"], r["ratio"], r["form"]) == (2, 1, 0.05, "pair")]
    assert len(rows) == len(script.CONFIGS)
    for row in rows:
        assert min(script.over_dense(row, key) for key in script.MEASURES) > 1


@pytest.mark.parametrize(("form", "tp", "groups"), [("pair", 2, 2), ("interpolative", 2, 2), ("pair", 2, 1)])
def test_rows_are_counted_again(script, form, tp, groups):
    path = ROOT / "model_configs" / "llama-3.2-1b.yaml"
    found = script.row_of(path, script.shapes(path), form, 0.05, tp, groups)
    known = [row for row in script.load() if all(row[key] == value for key, value in found.items())]
    assert len(known) == 1
