"""The measured peaks of benchmarks/data/compress.jsonl beside what `plan` promises."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "benchmarks" / "data" / "compress.jsonl"
LATEST = {
    (row["shape"], row["recipe"], row.get("tp_degree", 1), row["ratio"]): row
    for row in map(json.loads, DATA.read_text().splitlines())
}


@pytest.mark.parametrize("kind", LATEST, ids=str)
def test_a_run_took_no_more_than_the_plan_said(kind):
    """A refit is planned for a dense down of nearly all neurons, which these runs have not: a quarter at most."""
    measured, modelled = LATEST[kind]["peak_gib"], LATEST[kind]["modelled_peak_gib"]
    assert measured <= modelled
    assert LATEST[kind]["recipe"] != "default" or modelled < 1.25 * measured


@pytest.mark.parametrize("kind", LATEST, ids=str)
def test_one_layer_at_a_time_fits_six_gib(kind):
    """14336 intermediate neurons among them, with neuron dropping and a refit."""
    assert LATEST[kind]["modelled_peak_gib"] < 6
