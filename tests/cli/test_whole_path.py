"""compress, verify, inspect, evaluate and generate after each other on a tiny model, as a newcomer would type them."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import nxdi_svd_plugin
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.report.card import metadata_of


@pytest.fixture(params=["llama", "qwen3"])
def base(request, tmp_path):
    """A dense directory with a model card."""
    directory = tmp_path / "base"
    shutil.copytree(request.getfixturevalue(f"tiny_{request.param}"), directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return directory


def run(capsys, *argv):
    code = main([*map(str, argv), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_from_a_dense_directory_to_a_measured_compressed_one(base, tmp_path, capsys):
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("ratio: 0.2\ndrop: false\nblock: 4\ncalibration: {samples: 4, length: 64}\n")
    changed = ["--recipe", recipe, "--tp-degree", 3]
    code, plan = run(capsys, "plan", "--model", base, *changed)
    assert code == 0 and plan["groups"] == 3
    code, report = run(capsys, "compress", "--model", base, "--output", out, *changed)
    assert code == 0 and report["groups"] == 3
    code, checked = run(capsys, "verify", out, "--base", base)
    assert code == 0, checked
    code, found = run(capsys, "inspect", out)
    assert code == 0 and found["ratio"] == report["ratio"] and found["groups"] == 3
    stored = load_file(out / "model.safetensors")
    core = sum(t.nbytes for name, t in stored.items() if ".mlp." in name) / 3
    assert found["mlp_bytes_per_core"] == core == pytest.approx(plan["bytes"]["mlp_per_core"], rel=1e-3)
    assert [row.get("rank") for row in found["matrices"]] == [row.get("rank") for row in report["matrices"]]
    errors = [row["relative_error"] for row in found["matrices"] if row.get("rank")]
    assert errors and all(error > 0 for error in errors)

    argv = ["--base", base, "--max-tokens", 300, "--window", 64, "--record"]
    code, measured = run(capsys, "evaluate", "--model", out, *argv)
    assert code == 0 and measured["relative"] > 0
    card = (out / "README.md").read_text()
    assert f"| this model | {measured['perplexity']:.3f} |" in card
    assert metadata_of(card)["license"] == "apache-2.0"
    assert run(capsys, "verify", out, "--base", base)[0] == 0  # recording changed no weight

    code, answer = run(capsys, "generate", "--model", out, "--prompt", "abc", "--max-new-tokens", 4)
    assert code == 0 and answer["prompt_tokens"] == 3
    assert nxdi_svd_plugin.load_pretrained(out).config.svd_config["ratio"] == report["ratio"]
