"""The rows of rivals in docs/accuracy.md: as many MLP parameters, the same calibration, texts and windows as ours."""

import json
import re
from pathlib import Path

import pytest
from scripts import script

ROOT = Path(__file__).parents[1]
ROWS = [json.loads(line) for line in (ROOT / "benchmarks/data/accuracy.jsonl").read_text().splitlines()]
DENSE = {row["text"]: row for row in ROWS if row["method"] == "dense"}
OURS = {row["text"]: row for row in ROWS if row["method"] == "default" and row["ratio"] == 0.1 and "perplexity" in row}
METHODS = script("rivals").RIVALS
RIVALS = [row for row in ROWS if row["method"] in METHODS]
NAMES = [f"{row['method']}-{row['ratio']}-{row['text']}" for row in RIVALS]


@pytest.mark.parametrize("row", RIVALS, ids=NAMES)
def test_a_rival_stores_as_much(row):
    """Within 0.2 % of the parameters that the ratio leaves."""
    target = (1 - row["ratio"]) * DENSE[row["text"]]["mlp_parameters"]
    assert row["mlp_parameters"] == pytest.approx(target, rel=0.002)


@pytest.mark.parametrize("row", RIVALS, ids=NAMES)
def test_a_rival_reads_and_is_read_as_ours(row):
    ours = OURS[row["text"]]
    for name in ("model", "text_sha256", "predictions", "window", "dtype", "domain"):
        assert row[name] == ours[name]
    for name in ("text", "sha256", "samples", "length", "tokens", "seed"):
        assert row["calibration"][name] == ours["calibration"][name]


@pytest.mark.parametrize("row", RIVALS, ids=NAMES)
def test_a_rival_says_what_ran(row):
    assert re.fullmatch(r"github\.com/[\w.-]+/[\w.-]+ [0-9a-f]{40}", row["source"])
    assert row["settings"] and row["versions"] and row["cpu_seconds"] > 0


def test_every_run_has_all_texts_once():
    runs = [(row["method"], row["ratio"], row["text"]) for row in RIVALS]
    assert len(set(runs)) == len(runs) == len(DENSE) * len({run[:2] for run in runs})


def test_every_rival_has_a_name_and_the_page_the_table():
    tables = script("accuracy_tables")
    assert {row["method"] for row in RIVALS} <= set(tables.RIVALS)
    assert tables.rivals(ROWS) in (ROOT / "docs/accuracy.md").read_text()
