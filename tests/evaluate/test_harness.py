"""lm-eval on local files in the hub's formats: all ten tasks of the paper, base and compressed as a pair."""

import dataclasses
import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from reports import write_report

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.errors import CalibrationError, MissingExtraError, RecipeError
from nxdi_svd_plugin.evaluate.harness import (
    PAPER_TASKS,
    Options,
    evaluate_pair,
    pair_rows,
    recovery,
    rolling_error,
    to_text,
)
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.report.measured import Row
from nxdi_svd_plugin.report.record import Report

DATA = Path(__file__).parent / "data"
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason='lm-eval is not installed (pip install ".[eval]")'
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@needs_lm_eval
@pytest.mark.slow
def test_all_tasks_of_the_paper_on_local_data(tiny_llama, tiny_svd_llama):
    got = evaluate_pair(tiny_llama, tiny_svd_llama, Options(["paper"], task_data=DATA))
    rows = got.rows
    assert {row.task for row in rows} == set(PAPER_TASKS)
    lines = {task: len((DATA / f"{task}.jsonl").read_text().splitlines()) for task in PAPER_TASKS}
    assert all(row.samples == lines[row.task] for row in rows)
    assert all(math.isfinite(row.base) and math.isfinite(row.compressed) for row in rows)
    metrics = {task: {row.metric for row in rows if row.task == task} for task in PAPER_TASKS}
    assert all("word_perplexity" in metrics[task] for task in ("wikitext", "ptb", "c4"))
    assert all("acc" in metrics[task] for task in PAPER_TASKS[3:])
    accuracies = [row for row in rows if row.metric == "acc"]
    assert all(0 <= row.base <= 1 for row in accuracies)
    assert all(getattr(row, f"{side}_stderr") is not None for row in rows for side in ("base", "compressed"))


@needs_lm_eval
@pytest.mark.slow
def test_lm_evals_own_command_loads_a_compressed_directory(tiny_svd_llama, monkeypatch, capsys, tmp_path):
    """docs/evaluation.md: with the plugin imported, `lm_eval run --model hf --model_args pretrained=DIR`."""
    from lm_eval.__main__ import cli_evaluate

    monkeypatch.chdir(Path(__file__).parents[2])
    model = ["--model", "hf", "--model_args", f"pretrained={tiny_svd_llama}", "--device", "cpu"]
    tasks = ["--tasks", "tiny_choice", "--include_path", str(DATA), "--output_path", str(tmp_path / "results.json")]
    monkeypatch.setattr("sys.argv", ["lm_eval", "run", *model, *tasks])
    cli_evaluate()
    [found] = tmp_path.glob("results*.json")
    accuracy = json.loads(found.read_text())["results"]["tiny_choice"]["acc,none"]
    ours = evaluate_pair(tiny_svd_llama, tiny_svd_llama, Options(["tiny_choice"], include_path=DATA))
    assert accuracy == ours.rows[0].base


@needs_lm_eval
def test_a_score_computed_by_hand(tiny_llama, monkeypatch):
    """Accuracy is the share of questions whose right answer has the larger log-probability."""
    monkeypatch.chdir(Path(__file__).parents[2])
    got = evaluate_pair(tiny_llama, tiny_llama, Options(["tiny_choice"], include_path=DATA))
    model, tokenizer = load_model(tiny_llama, torch.float32), load_tokenizer(tiny_llama)
    right = 0
    for line in (DATA / "piqa.jsonl").read_text().splitlines():
        doc = json.loads(line)
        question = tokenizer(f"Question: {doc['goal']}\nAnswer:")["input_ids"]
        likelihoods = []
        for answer in (doc["sol1"], doc["sol2"]):
            ids = torch.tensor([question + tokenizer(" " + answer)["input_ids"]])
            with torch.no_grad():
                chances = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            likelihoods.append(float(chances[len(question) - 1 :].sum()))
        right += likelihoods[doc["label"]] == max(likelihoods)
    (row,) = got.rows
    assert row.base == row.compressed == pytest.approx(right / 3) and row.samples == 3
    assert row.recovery == (1 if right else None)


@needs_lm_eval
def test_rolling_perplexity_computed_by_hand(tiny_llama, tiny_svd_llama, tmp_path):
    (tmp_path / "ptb.jsonl").write_text('{"sentence": "a rose is a rose"}\n')
    got = evaluate_pair(tiny_llama, tiny_svd_llama, Options(["ptb"], task_data=tmp_path))
    row = next(row for row in got.rows if row.metric == "byte_perplexity")
    for side, directory in (("base", tiny_llama), ("compressed", tiny_svd_llama)):
        model, tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("a rose is a rose")["input_ids"]]])
        with torch.no_grad():
            chances = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        assert getattr(row, side) == pytest.approx(math.exp(-float(chances.mean())), rel=1e-4)  # one token a byte
    assert row.recovery == pytest.approx(row.base / row.compressed)


def test_errors_of_perplexities():
    """Documents of equal length: the error of a mean, carried through exp; unequal ones: near the jackknife."""
    losses = torch.tensor([2.0, 2.5, 3.1, 1.9, 2.2], dtype=torch.float64)
    mean, error = float(losses.mean()), float(losses.std() / 5**0.5)
    equal = [(-7 * float(loss), 7) for loss in losses]
    assert rolling_error("word_perplexity", equal) == pytest.approx(math.exp(mean) * error)
    assert rolling_error("bits_per_byte", equal) == pytest.approx(error / math.log(2))
    assert rolling_error("word_perplexity", equal[:1]) is None
    gen = torch.Generator().manual_seed(0)
    units = torch.randint(20, 60, (200,), generator=gen).double()
    likelihoods = -units * (2 + 0.3 * torch.randn(200, generator=gen, dtype=torch.float64))
    left_out = -(likelihoods.sum() - likelihoods) / (units.sum() - units)
    jackknife = float(left_out.std(correction=0)) * 199**0.5 * math.exp(float(-likelihoods.sum() / units.sum()))
    pairs = list(zip(likelihoods.tolist(), units.tolist(), strict=True))
    # both are first order in 1 / n
    assert rolling_error("byte_perplexity", pairs) == pytest.approx(jackknife, rel=2 / 200)


@needs_lm_eval
def test_limit(tiny_llama, tiny_svd_llama):
    got = evaluate_pair(tiny_llama, tiny_svd_llama, Options(["arc_easy"], limit=2, task_data=DATA))
    assert {row.samples for row in got.rows} == {2} and got.settings["limit"] == 2


@needs_lm_eval
def test_wrong_tasks_are_refused_before_a_model_is_loaded(tmp_path):
    none = tmp_path / "no-model"
    with pytest.raises(RecipeError, match=r"unknown task 'arc_esay'; did you mean arc_easy"):
        evaluate_pair(none, none, Options(["arc_esay"]))
    with pytest.raises(CalibrationError, match=r"task piqa needs .*piqa\.jsonl"):
        evaluate_pair(none, none, Options(["piqa"], task_data=tmp_path))
    with pytest.raises(RecipeError, match="is not a directory"):
        evaluate_pair(none, none, Options(["piqa"], include_path=none))


@needs_lm_eval
def test_without_a_network_local_data_is_suggested(tiny_llama):
    with pytest.raises(CalibrationError, match="--task-data"):
        evaluate_pair(tiny_llama, tiny_llama, Options(["piqa"]))


def test_without_lm_eval_the_pip_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("nxdi_svd_plugin.versions.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nxdi-svd-plugin\[eval\]"):
        evaluate_pair(tmp_path, tmp_path, Options(["piqa"]))


def test_recovery_is_one_without_loss_and_smaller_with_it():
    assert recovery("acc", 0.5, 0.4) == pytest.approx(0.8)
    assert recovery("word_perplexity", 10.0, 12.5) == pytest.approx(0.8)
    assert recovery("bits_per_byte", 1.0, 1.25) == pytest.approx(0.8)
    assert recovery("acc", 0.0, 0.4) is None


def test_rows_pair_scores_with_their_errors():
    def results(acc, error):
        return {
            "results": {"t": {"alias": "t", "acc,none": acc, "acc_stderr,none": error}},
            "n-samples": {"t": {"original": 9, "effective": 5}},
        }

    (row,) = pair_rows(results(0.5, 0.1), results(0.25, "N/A"))
    assert row == Row("t", "acc", 5, 0.5, 0.1, 0.25, None, 0.5)
    assert "0.5000 ± 0.1000" in to_text([row]) and "0.500" in to_text([row]).splitlines()[1][-6:]


@needs_lm_eval
def test_the_command_prints_and_records_the_pairs(tiny_llama, tiny_svd_llama, tmp_path, capsys):
    model = shutil.copytree(tiny_svd_llama, tmp_path / "model")
    report = write_report(model)
    command = [
        "evaluate",
        "--base",
        str(tiny_llama),
        "--model",
        str(model),
        "--tasks",
        "piqa",
        "--task-data",
        str(DATA),
    ]
    assert main([*command, "--record", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = Report.read(model)
    assert found == dataclasses.replace(report, tasks=found.tasks) and found.tasks.to_dict() == printed
    assert printed["rows"][0]["task"] == "piqa"


def test_the_command_wants_a_pair(tiny_svd_llama, capsys):
    assert main(["evaluate", "--model", str(tiny_svd_llama), "--tasks", "piqa"]) == 2
    assert "give the dense model with --base" in capsys.readouterr().err
