"""The committed NKIBench rows: the page and the constants follow from them, and what was aimed at was reached.

With NXDI_SVD_NKIBENCH, a checkout of zhang677/AccelOpt at 47e29a7, the kernels are counted again.
"""

import importlib
import json
import os
from pathlib import Path

import pytest

from nxdi_svd_plugin.hardware import MODEL_ERROR, OVERLAP, STALL_CYCLES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHECKOUT = Path(os.environ.get("NXDI_SVD_NKIBENCH", "/nonexistent"))


@pytest.fixture
def script(monkeypatch):
    """A module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def rows():
    return [json.loads(line) for line in (BENCHMARKS / "data" / "nkibench.jsonl").read_text().splitlines()]


def test_the_page_is_in_step_with_the_rows(script, rows):
    tables = script("nkibench_tables")
    page = tables.PAGE.read_text()
    assert tables.rendered(page, rows) == page


def test_the_constants_are_those_of_the_fit(script, rows):
    found = script("nkibench_tables").fit(rows)
    assert (found["stall_cycles"], found["overlap"]) == (STALL_CYCLES, OVERLAP)
    assert (min(found["low"], found["fitted_low"]), max(found["high"], found["fitted_high"])) == MODEL_ERROR


def test_the_fit_finds_what_made_the_numbers(script):
    """Activities made with 40 stall cycles and latencies 1.5 times the bound, on rows of its own."""
    tables = script("nkibench_tables")
    made = []
    for number in range(6):
        cycles, issues = 1000 * (number + 1), 10 + number
        scalar = (cycles + 40 * issues) / tables.CLOCK_HZ["scalar"] * 1e6
        measured = {"latency_us": 1.5 * scalar, "busy_us": {"scalar": scalar, "gpsimd": 0.0}}
        counted = {"scalar_cycles": cycles, "issues": {"scalar": issues}, "busy_us": {"scalar": scalar}}
        made.append({"kernel": str(number), "measured": measured, "simulated": counted})
    found = tables.fit(made)
    assert (found["stall_cycles"], found["overlap"]) == (40, 1.5)
    assert found["low"] == found["high"] == found["fitted_low"] == found["fitted_high"] == 0


def test_most_kernels_move_the_bytes_that_were_measured_and_none_spills_where_the_device_did_not(script, rows):
    tables = script("nkibench_tables")
    assert len(rows) == 14
    assert sum(abs(tables.difference(row)) <= 0.05 for row in rows) >= 10
    for row in rows:
        real, ours = row["measured"], row["simulated"]
        if real["spill_save_bytes"] == 0:
            assert ours["spill_save_bytes"] == ours["spill_reload_bytes"] == 0


@pytest.mark.skipif(
    not (CHECKOUT / "NKIBench").is_dir(), reason="NXDI_SVD_NKIBENCH does not name a checkout of AccelOpt"
)
def test_counting_again_gives_the_rows(script, rows):
    assert script("nkibench").count(CHECKOUT) == rows
