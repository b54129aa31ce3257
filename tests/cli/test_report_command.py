"""nxdi-svd report: files named on stdout, evaluations dealt out to the models."""

import dataclasses
import json

import pytest
from reports import EVALUATION, a_report

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.report.measured import TextName


def save(folder):
    folder.mkdir()
    a_report().write(folder)
    pair = dataclasses.replace(EVALUATION, text=TextName(f"{folder.name}.txt", "0"))
    (folder / "pair.json").write_text(json.dumps(pair.to_dict()))
    return folder


def test_two_models_into_a_directory(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    models = [save(tmp_path / name) for name in ("a", "b")]
    files = [part for model in models for part in ("--evaluation", str(model / "pair.json"))]
    assert main(["report", *map(str, models), *files, "--output", str(tmp_path / "out"), "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["files"]
    assert sorted(named) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a | a.txt | perplexity | 20 | 25 | 0.800 |" in text and "| b | b.txt |" in text


def test_uneven_evaluations_are_refused(tmp_path, capsys):
    models = [str(save(tmp_path / name)) for name in ("a", "b")]
    assert main(["report", *models, "--evaluation", "x.json"]) == 2
    assert "1 evaluations cannot be dealt out to 2 models" in capsys.readouterr().err
