"""doctor --device: the table, the exit codes, what is kept of a failure."""

import json
from pathlib import Path

import pytest

from nxdi_svd_plugin.cli import doctor
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.hardware import MODEL_BAND
from nxdi_svd_plugin.kernels.ladder import rungs


def test_the_simulators_table(capsys, monkeypatch):
    whole = rungs.ladder("simulator")
    monkeypatch.setattr(rungs, "ladder", lambda device: whole[:2])  # tests/kernels/test_ladder.py climbs all of them
    assert main(["doctor", "--device", "simulator"]) == (0 if doctor.examine()["ok"] else 1)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2
    assert f"us (modelled, {MODEL_BAND}; no device run)" in table[0]
    assert all(" ok " in row and "yes: read" in row for row in table[2:])
    assert lines[0].startswith("nxdi-svd-plugin ") and "neuronx-cc" in lines[0]


def test_a_failing_kernel_is_exit_code_1_and_its_log_stays(capsys, monkeypatch, tmp_path):
    good = rungs.ladder("simulator")[0]
    bad = rungs.Rung("project", "pair", 1, good.sizes, "nxdi_svd_plugin.kernels.ladder.cases:missing")
    monkeypatch.setattr(rungs, "ladder", lambda device: [good, bad])
    assert main(["doctor", "--device", "simulator", "--json", "--work-dir", str(tmp_path / "new")]) == 1
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert [rung["status"] for rung in kernels["rungs"]] == ["ok", "error"]
    assert "AttributeError" in Path(kernels["rungs"][1]["log"]).read_text()
    assert main(["doctor", "--device", "simulator"]) == 1
    text = capsys.readouterr().out
    log = next(line.split()[1] for line in text.splitlines() if line.startswith("  log "))
    assert "project pair S=1: error: step 'build': AttributeError" in text and Path(log).exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--device", "neuron"], 3, "needs the Neuron compiler (neuronx-cc), which is not installed"),
        (["--limit", "5"], 2, "--limit and --work-dir go with --device"),
        (["--device", "simulator", "--limit", "0"], 2, "--limit 0 must be more than 0 seconds"),
        (["--device", "simulator", "--work-dir", "."], 2, "--work-dir . is not empty"),
    ],
)
def test_what_cannot_be_tried_is_said_first(capsys, options, code, message):
    assert main(["doctor", *options]) == code
    assert message in capsys.readouterr().err
