"""nxdi-svd report: files named on stdout, evaluations dealt out to the models."""

import json

import pytest

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.stored.layers import PROJECTIONS


def save(folder):
    folder.mkdir()
    matrices = [
        {"layer": 0, "projection": name, "form": "factored", "rank": 4, "relative_error": 0.1} for name in PROJECTIONS
    ]
    content = {
        "source": {"name": "tiny"},
        "ratio": {"asked": 0.1, "target": "mlp", "mlp": 0.1, "model": 0.05},
        "parameters": {"mlp_dense": 100, "mlp": 90, "model_dense": 200, "model": 190},
        "matrices": matrices,
        "calibration": {"text": "built-in", "sha256": "ab" * 32, "tokens": 64, "seed": 0},
        "cost": {"wall_seconds": 1.0, "peak_bytes": 2**30},
    }
    (folder / "report.json").write_text(json.dumps(content))
    pair = {"base": {"perplexity": 10.0}, "perplexity": 12.5, "text": {"name": folder.name + ".txt", "sha256": "0"}}
    (folder / "pair.json").write_text(json.dumps(pair))
    return folder


def test_two_models_into_a_directory(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    models = [save(tmp_path / name) for name in ("a", "b")]
    files = [part for model in models for part in ("--evaluation", str(model / "pair.json"))]
    assert main(["report", *map(str, models), *files, "--output", str(tmp_path / "out"), "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["files"]
    assert sorted(named) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a | a.txt | perplexity | 10 | 12.5 | 0.800 |" in text and "| b | b.txt |" in text


def test_uneven_evaluations_are_refused(tmp_path, capsys):
    models = [str(save(tmp_path / name)) for name in ("a", "b")]
    assert main(["report", *models, "--evaluation", "x.json"]) == 2
    assert "1 evaluations cannot be dealt out to 2 models" in capsys.readouterr().err
