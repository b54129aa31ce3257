"""evaluate, inspect and verify from the command line: results, JSON, exit codes, bad input."""

import json
import shutil
import subprocess
import sys

import pytest
from reports import RECOVERY, write_report

from nxdi_svd_plugin.checkpoint.reader import file_sha256
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.evaluate.perplexity import measure, token_ids
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer


def run_json(capsys, *argv):
    code = main([*map(str, argv), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was a bright cold day in April, and the clocks were striking thirteen.\n" * 3)
    return path


def test_evaluate_gives_the_perplexity_of_both(tiny_svd_llama, tiny_llama, text, capsys):
    argv = ["evaluate", "--model", tiny_svd_llama, "--base", tiny_llama, "--text", text, "--window", 64, "--stride", 32]
    code, result = run_json(capsys, *argv)
    ids = token_ids(load_tokenizer(tiny_llama), text.read_text())
    for found, directory in ((result, tiny_svd_llama), (result["base"], tiny_llama)):
        assert found["perplexity"] == measure(load_model(directory), ids, 64, 32).perplexity
    assert code == 0 and result["tokens"] == len(ids) - 1
    assert result["relative"] == result["perplexity"] / result["base"]["perplexity"]
    assert result["text"] == {"name": "text.txt", "sha256": file_sha256(text)}
    assert main([*map(str, argv)]) == 0
    shown = capsys.readouterr().out
    assert f"{result['relative']:.3f}  times the base" in shown and "window 64, stride 32" in shown


def test_evaluate_takes_the_built_in_text_by_default(tiny_qwen3, capsys):
    code, result = run_json(capsys, "evaluate", "--model", tiny_qwen3, "--max-tokens", 100, "--window", 50)
    assert code == 0 and result["text"]["name"] == "builtin-heldout" and result["tokens"] == 98


def test_evaluate_records_into_report_and_card(tiny_svd_llama, text, tmp_path, capsys, monkeypatch):
    directory = tmp_path / "svd"
    shutil.copytree(tiny_svd_llama, directory)
    argv = ["evaluate", "--model", directory, "--text", text, "--window", 64, "--record"]
    code, result = run_json(capsys, *argv)
    assert code == 1 and "no report" in result["error"]
    with monkeypatch.context() as patch:  # before anything is measured
        patch.setattr("nxdi_svd_plugin.modeling.load.load_model", lambda *_: pytest.fail("measured first"))
        assert run_json(capsys, *argv)[0] == 1
    write_report(directory)
    code, result = run_json(capsys, *argv)
    assert code == 0
    assert json.loads((directory / "report.json").read_text())["evaluation"]["perplexity"] == result["perplexity"]
    assert f"{result['perplexity']:.3f}" in (directory / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b" \n", "empty"), (b"x", "at least 2"), (b"\xff\xfe\x00", "not UTF-8"), (None, "cannot be read")],
)
def test_evaluate_refuses_a_bad_text(tiny_llama, tmp_path, capsys, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    code, result = run_json(capsys, "evaluate", "--model", tiny_llama, "--text", path)
    assert code == 1 and message in result["error"] and result["type"] == "CalibrationError"


def test_evaluate_refuses_models_that_read_other_tokens(tiny_svd_llama, tiny_llama, text, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, result = run_json(capsys, "evaluate", "--model", tiny_svd_llama, "--base", other, "--text", text)
    assert code == 1 and "different tokens" in result["error"]


@pytest.mark.parametrize("option", [["--window", "9999"], ["--window", "8", "--stride", "9"]])
def test_evaluate_with_a_window_that_does_not_fit_is_wrong_usage(tiny_llama, text, capsys, option):
    assert run_json(capsys, "evaluate", "--model", tiny_llama, "--text", text, *option)[0] == 2


def test_inspect_shows_rank_bytes_and_error(tiny_svd_llama, tmp_path, capsys):
    directory = tmp_path / "svd"
    shutil.copytree(tiny_svd_llama, directory)
    write_report(directory)
    code, found = run_json(capsys, "inspect", directory)
    rows = {(row["layer"], row["projection"]): row for row in found["matrices"]}
    assert code == 0 and found["format_version"] == 2 and found["groups"] == 1 and len(rows) == 9
    assert rows[0, "gate_proj"] == {
        "layer": 0,
        "projection": "gate_proj",
        "width": 90,
        "form": "pair",
        "rank": 20,
        "bytes": 4 * 20 * (44 + 90),
        "dense_parameters": 44 * 90,
        "relative_error": 0.125,
        "bf16_error": 0.011,
        "growth": None,
    }
    assert rows[1, "down_proj"]["bytes"] == 4 * 44 * 90 and rows[1, "down_proj"]["form"] == "dense"
    assert found["mlp_bytes"] == found["mlp_bytes_per_core"] == 4 * (8 * 20 * 134 + 44 * 90)
    assert main(["inspect", str(directory)]) == 0
    assert "12.50 %   1.10 %" in capsys.readouterr().out


def test_the_default_window_is_no_longer_than_the_model_takes(tiny_svd_llama, tiny_llama, text, capsys):
    code, result = run_json(capsys, "evaluate", "--model", tiny_svd_llama, "--base", tiny_llama, "--text", text)
    assert code == 0 and result["window"] == result["base"]["window"] == 512


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"matrices": [', "report.json cannot be read"), ('{"groups": 1, "matrices": []}', "there is no key 'source'")],
)
def test_inspect_of_a_damaged_report_is_one_line(content, message, tiny_svd_llama, tmp_path, capsys):
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "svd")
    (directory / "report.json").write_text(content)
    assert main(["inspect", str(directory)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_inspect_needs_no_report(tiny_svd_llama, capsys):
    code, found = run_json(capsys, "inspect", tiny_svd_llama)
    assert code == 0 and found["calibration"] is None and found["matrices"][0]["relative_error"] is None


def test_inspect_says_what_was_recovered_and_what_was_asked(tiny_svd_llama, tmp_path, capsys):
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "svd")
    config = json.loads((directory / "config.json").read_text())
    config["svd_config"]["ratio"] = {"asked": 0.1, "target": "mlp", "mlp": 0.12, "model": 0.05}
    config["svd_config"]["recovery"] = RECOVERY.summary()
    (directory / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "ratio asked 0.1 of the mlp; reached 0.1200" in shown and shown.endswith("before recovery\n")
    config["svd_config"]["ratio"] = {"asked": 0.1}
    (directory / "config.json").write_text(json.dumps(config))
    code, found = run_json(capsys, "inspect", directory)
    assert code == 1 and "svd_config.ratio has no key 'target'" in found["error"]


def test_inspect_of_a_dense_directory_fails(tiny_llama, capsys):
    code, result = run_json(capsys, "inspect", tiny_llama)
    assert code == 1 and "not a compressed directory" in result["error"]


def test_verify_exits_1_when_a_check_fails(tiny_svd_llama, tiny_llama, tmp_path, capsys):
    directory = tmp_path / "svd"
    shutil.copytree(tiny_svd_llama, directory)
    write_report(directory, files={})
    code, result = run_json(capsys, "verify", directory, "--base", tiny_llama)
    assert code == 1 and not result["ok"]
    write_report(directory)
    code, result = run_json(capsys, "verify", directory, "--base", tiny_llama)
    assert code == 0 and result["ok"] and all(check["ok"] for check in result["checks"])
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out.count("ok  ") == 7


COMMANDS = {
    "plan": ["plan", "--block", "2", "--model"],
    "compress": ["compress", "--block", "2", "--output", "out", "--model"],
    "evaluate": ["evaluate", "--max-tokens", "40", "--window", "20", "--model"],
    "generate": ["generate", "--prompt", "a", "--model"],
    "inspect": ["inspect"],
    "verify": ["verify"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_is_none_or_unfinished_is_one_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[command], "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "nowhere is not a directory; give a local" in error and error.count("\n") == 1
    (tmp_path / "half" / ".unfinished").mkdir(parents=True)
    assert main([*COMMANDS[command], "half"]) == 1
    error = capsys.readouterr().err
    assert "half is unfinished; run its command again with --resume" in error and error.count("\n") == 1


def test_a_missing_tensor_is_one_error_without_transformers_warnings(tiny_svd_llama, tmp_path):
    """As a program: transformers' logger writes to the stderr that it found when it was imported."""
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "svd")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    argv = ["generate", "--model", str(directory), "--prompt", "a"]
    done = subprocess.run(
        [sys.executable, "-m", "nxdi_svd_plugin.cli.main", *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "missing: model.layers.0" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 0},
        {"num_attention_heads": "4"},
        {"hidden_size": []},
        {"hidden_act": "silly"},
        {"model_type": {}},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_a_config_of_no_model_is_one_line_and_no_traceback(
    command, changes, tiny_llama, tiny_svd_llama, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    directory = shutil.copytree(tiny_llama if command in ("plan", "compress") else tiny_svd_llama, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    code, error = main([*COMMANDS[command], "model"]), capsys.readouterr().err
    if command == "inspect" and code == 0 and not {"head_dim", "hidden_act"}.isdisjoint(changes):  # unread
        return
    assert code == 1 and "config.json" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
