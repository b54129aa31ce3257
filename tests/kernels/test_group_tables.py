"""A core with a group of its own holds, moves and computes its share of what dense does; the rows and their pages."""

from pathlib import Path

import pytest
from scripts import script

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
        plain = row["pe_cycles_2048"] - row["transpose_cycles_2048"]
        assert plain <= 1.02 * left * row["dense_pe_cycles_2048"]
        assert max(script.over_dense(row, key) for key in script.MEASURES) < 1


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
