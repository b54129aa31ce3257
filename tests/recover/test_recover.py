"""Recovery end to end on a tiny model: loss falls, the output is a normal directory, kill and resume, never worse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from reports import EVERYTHING, write_report
from safetensors.torch import load_file
from tiny_models import save_dense

import nxdi_svd_plugin
from nxdi_svd_plugin.checkpoint.lock import OutputLock
from nxdi_svd_plugin.checkpoint.partner import check_partner
from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.checkpoint.writer import Writer
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError, RecipeError
from nxdi_svd_plugin.modeling.load import load_pretrained
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.recover.recover import recover
from nxdi_svd_plugin.recover.settings import Settings
from nxdi_svd_plugin.recover.train import batch, schedule
from nxdi_svd_plugin.report.keep import keep
from nxdi_svd_plugin.report.record import Report, recorded

pytest.importorskip("peft")
QUICK = {"steps": 30, "batch": 4, "window": 32, "evaluate_every": 10, "validation_windows": 4, "lora_rank": 8}
TEXT = "the quick brown fox jumps over the lazy dog and runs away from it. "


@pytest.fixture(scope="module")
def compressed(tiny_svd_llama, tmp_path_factory):
    """`tiny_svd_llama` with the report.json that a compression writes, and what `evaluate --record` adds."""
    directory = shutil.copytree(tiny_svd_llama, tmp_path_factory.mktemp("compressed") / "model")
    write_report(directory, **{**EVERYTHING, "recovery": None})
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"{i} and {i + 1}"} for i in range(60)]
    (folder / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plain.txt").write_text(TEXT * 40)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["alpaca.jsonl", "plain.txt"])
def test_recovery_helps_and_writes_a_normal_directory(compressed, data, tmp_path, method, name):
    settings = Settings(method=method, learning_rate=3e-3, **QUICK)
    record = recover(compressed, data / name, tmp_path / "out", settings)
    change, losses = record.perplexity, [row.train_loss for row in record.history[1:]]
    assert change.output == change.trained < 0.7 * change.input and not record.kept_input
    assert losses[-1] < losses[0]
    old, new = load_file(compressed / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in old.items()} == {n: (t.shape, t.dtype) for n, t in new.items()}
    factors = {n for n in old if n.endswith((".u", ".v"))}
    assert {n for n in old if not torch.equal(old[n], new[n])} == factors
    load_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((compressed / "config.json").read_text())
    assert config["svd_config"]["layers"] == source["svd_config"]["layers"]
    assert config["svd_config"]["recovery"]["data"]["sha256"] == record.data.sha256
    report = Report.read(tmp_path / "out")
    assert report.recovery == record and report.trained and report.layers == Report.read(compressed).layers
    assert {report.evaluation, report.tasks, report.layer_losses} == {None}, "they were measured on the input"
    assert all(m.bf16_error is None for m in report.matrices) and report.matrices[0].relative_error == 0.125
    assert not (tmp_path / "out" / ".unfinished").exists()


def test_every_matrix_of_the_layers_may_be_trained(tiny_llama, compressed, data, tmp_path):
    """Attention moves too, embeddings and norms do not; verify knows it from the record, and from it alone."""
    settings = Settings(method="layers", learning_rate=3e-3, **QUICK)
    record = recover(compressed, data / "plain.txt", tmp_path / "out", settings)
    old, new = load_file(compressed / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    projections = {n for n in old if n.endswith((".u", ".v", "_proj.weight"))}
    assert {n for n in old if not torch.equal(old[n], new[n])} == projections and not record.kept_input
    assert any("self_attn" in n for n in projections)
    assert base_check(tmp_path / "out", tiny_llama).ok
    check_partner(tmp_path / "out", tiny_llama)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["svd_config"]["recovery"]["settings"]["method"] = "full"
    path.write_text(json.dumps(config))
    failed = base_check(tmp_path / "out", tiny_llama)
    assert not failed.ok and "self_attn" in failed.detail


def base_check(directory, base):
    return next(
        check for check in verify(directory, recorded, base) if check.name == "untouched tensors equal the base's"
    )


def test_distillation_brings_the_model_nearer_to_its_teacher(tiny_llama, compressed, data, tmp_path):
    settings = Settings(learning_rate=3e-3, **QUICK)
    record = recover(compressed, data / "plain.txt", tmp_path / "out", settings, teacher_dir=tiny_llama)
    divergences = [row.train_loss for row in record.history[1:]]
    assert record.loss == "distillation" and 0 < divergences[-1] < divergences[0]


def test_a_result_that_is_worse_is_thrown_away(compressed, data, tmp_path, caplog):
    other = tmp_path / "other.txt"
    other.write_text("ZYXWVUTSRQ 0987654321 " * 30)
    settings = Settings(learning_rate=1e-2, **QUICK)
    good = tmp_path / "good"
    recover(compressed, other, good, settings)  # now it knows this text and has something to forget
    caplog.clear()
    record = recover(good, data / "plain.txt", tmp_path / "out", settings, validation=other)
    assert record.kept_input and record.perplexity.output == record.perplexity.input
    assert "recovery did not help" in caplog.text
    old, new = load_file(good / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_run_that_diverges_keeps_the_input_and_a_readable_report(compressed, data, tmp_path):
    """Parameters become NaN; the output is the input, and no NaN is in report.json, which strict readers refuse."""
    settings = Settings(learning_rate=1e20, **{**QUICK, "evaluate_every": 3})
    record = recover(compressed, data / "plain.txt", tmp_path / "out", settings)
    assert record.kept_input and record.best_step == 0 and record.history[-1].train_loss is None
    assert record.history[-1].validation_perplexity is None
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (compressed / "model.safetensors").read_bytes()

    def refuse(constant):
        raise AssertionError(f"report.json holds {constant}")

    json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=refuse)


def test_stopped_while_writing_and_resumed(compressed, data, tmp_path, monkeypatch):
    settings = Settings(learning_rate=3e-3, **QUICK)
    recover(compressed, data / "plain.txt", tmp_path / "whole", settings)
    written, original = [], Writer.write

    def stopping(self, name, tensor):
        written.append(name)
        if len(written) == 15:
            raise KeyboardInterrupt
        original(self, name, tensor)

    monkeypatch.setattr(Writer, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        recover(compressed, data / "plain.txt", tmp_path / "out", settings)
    assert not (tmp_path / "out" / "config.json").exists()
    recover(compressed, data / "plain.txt", tmp_path / "out", settings, resume=True)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_state_is_one_sentence(compressed, data, tmp_path, damage, monkeypatch, capsys):
    text, out = str(data / "plain.txt"), tmp_path / "out"

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            recover(compressed, data / "plain.txt", out, Settings(**QUICK))
    state = out / ".unfinished" / "recovery.pt"
    state.write_bytes(damage(state.read_bytes()))
    command = ["recover", "--model", str(compressed), "--data", text, "--output", str(out), "--resume", "--quiet"]
    command += [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "recovery.pt is damaged (" in error and error.count("\n") == 1


def test_early_stop_keeps_the_best(compressed, data, tmp_path):
    settings = Settings(learning_rate=5e-1, **{**QUICK, "steps": 1000, "evaluate_every": 1, "patience": 3})
    record = recover(compressed, data / "plain.txt", tmp_path / "out", settings)
    assert len(record.history) == record.best_step + 4 < 1000
    best = min(row.validation_perplexity for row in record.history)
    assert best == record.history[record.best_step].validation_perplexity


@pytest.mark.slow
def test_kill_and_resume_ends_with_the_same_bytes(compressed, data, tmp_path):
    options = {**QUICK, "steps": 60, "evaluate_every": 3, "patience": 100}
    command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "recover", "--model", str(compressed)]
    command += ["--data", str(data / "plain.txt"), "--output", str(tmp_path / "out")]
    command += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    state = tmp_path / "out" / ".unfinished" / "recovery.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(CheckpointError, match="--resume"):
        recover(compressed, data / "plain.txt", tmp_path / "out", Settings(**options))
    with pytest.raises(CheckpointError, match="written with another settings"):
        recover(compressed, data / "plain.txt", tmp_path / "out", Settings(**options, seed=3), resume=True)
    done = torch.load(state, weights_only=True)["state"]["step"]
    recover(compressed, data / "plain.txt", tmp_path / "out", Settings(**options), resume=True)
    recover(compressed, data / "plain.txt", tmp_path / "whole", Settings(**options))
    assert done < 60
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_micro_batches_change_nothing_but_rounding(compressed, data, tmp_path):
    a, b = (
        recover(compressed, data / "plain.txt", tmp_path / str(m), Settings(micro_batch=m, **QUICK)) for m in (1, 4)
    )
    assert a.perplexity.trained == pytest.approx(b.perplexity.trained, rel=1e-3)


def test_bad_input_is_refused_before_the_output_exists(tiny_llama, compressed, tiny_svd_qwen3, data, tmp_path):
    out, text = tmp_path / "out", data / "plain.txt"
    (tmp_path / "keys.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(CalibrationError, match="has the columns: prompt"):
        recover(compressed, tmp_path / "keys.jsonl", out, Settings())
    with pytest.raises(CalibrationError, match="is the training text itself"):
        recover(compressed, text, out, Settings(**QUICK), validation=text)
    with pytest.raises(CalibrationError, match="none is left for validation"):
        recover(compressed, text, out, Settings(window=2000))
    with pytest.raises(RecipeError, match="window is 600; this model takes 2 to 512 tokens"):
        recover(compressed, text, out, Settings(window=600))
    with pytest.raises(CheckpointError, match="is a dense llama model"):
        recover(tiny_llama, text, out, Settings(**QUICK))
    damaged = shutil.copytree(compressed, tmp_path / "damaged")
    (damaged / "generation_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        recover(damaged, text, out, Settings(**QUICK))
    larger = json.loads((compressed / "tokenizer.json").read_text())
    larger["model"]["vocab"]["q"] = 259
    (damaged / "tokenizer.json").write_text(json.dumps(larger))
    shutil.copy(compressed / "generation_config.json", damaged)
    with pytest.raises(CheckpointError, match="gives id 259, the model has 259 embeddings"):
        recover(damaged, text, out, Settings(**QUICK))
    assert not out.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "dora"}, "method is 'dora'; expected one of lora, full"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"lora_alpha": -1.0}, "lora_alpha is -1.0"),
        ({"window": 1}, "window is 1; expected at least 2"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(RecipeError, match=message):
        Settings(**values)


@pytest.mark.parametrize(
    ("precision", "device", "quick", "mixed"),
    [
        ("auto", "cuda", False, True),
        ("auto", "cpu", True, True),
        ("auto", "cpu", False, False),
        ("auto", "mps", True, False),
        ("float32", "cpu", True, False),
        ("bfloat16", "cpu", False, True),
    ],
)
def test_products_are_mixed_where_they_are_quick_or_asked_for(precision, device, quick, mixed, monkeypatch):
    monkeypatch.setattr("nxdi_svd_plugin.recover.settings.multiplies_bfloat16", lambda: quick)
    assert Settings(precision=precision).mixed(torch.device(device)) is mixed


def test_every_epoch_shows_each_window_once_in_an_order_of_its_own():
    windows = torch.arange(7)[:, None]
    settings = Settings(batch=7, seed=3)
    first, second = (batch(windows, settings, step).flatten().tolist() for step in (0, 1))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    split = Settings(batch=2, seed=3)
    assert [int(w) for step in range(7) for w in batch(windows, split, step)] == first + second


def test_schedule_rises_then_falls_to_the_floor():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == 1.0 and rates.index(1.0) == 4
    assert rates[-1] == pytest.approx(0.1, abs=1e-3) and all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))


def test_a_recovered_directory_passes_verify_and_its_card_says_so(tiny_llama, data, tmp_path, capsys):
    first, second, text = tmp_path / "first", tmp_path / "second", str(data / "plain.txt")
    command = ["compress", "--model", str(tiny_llama), "--output", str(first), "--ratio", "0.4", "--block", "4"]
    command += [
        "--no-drop",
        "--dense",
        "0.up_proj",
        "--tp-degree",
        "2",
    ]  # stored in the layer's new order; verify --base undoes it
    assert main([*command, "--calibration", text, "--samples", "8", "--length", "64"]) == 0
    report = Report.read(first)
    keep(first, EVERYTHING["evaluation"])
    command = ["recover", "--model", str(first), "--data", text, "--output", str(second), "--learning-rate", "3e-3"]
    command += [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*command, "--json"]) == 0
    assert (second / "mlp_order.npy").read_bytes() == (first / "mlp_order.npy").read_bytes()
    assert main(["verify", str(second), "--base", str(tiny_llama)]) == 0, capsys.readouterr()
    after = Report.read(second)
    assert after.evaluation is None and after.files != report.files
    assert {mlp.groups for mlp in after.layers.values()} == {2} and after.layers == report.layers
    tensors = {k: t for path in second.glob("*.safetensors") for k, t in load_file(path).items()}
    for old, new in zip(report.matrices, after.matrices, strict=True):
        c = tensors.get(f"model.layers.{new.layer}.mlp.{new.name}.c")
        assert new.growth == (None if c is None else float(c.abs().max()))
        assert new.bf16_error is None and new.relative_error == old.relative_error
    assert main(["inspect", str(second)]) == 0
    assert "output errors are those of the compression, before recovery" in capsys.readouterr().out
    assert "Then the factors were trained (lora, next token, 30 steps" in (second / "README.md").read_text()


def test_recovery_keeps_the_growth_within_its_limit(tiny_llama, data, tmp_path, monkeypatch):
    """With a limit that training would cross, the stored C ends at it and is what was measured."""
    recipe = from_dict({"ratio": 0.3, "block": 4, "calibration": {"samples": 4, "length": 40}})
    nxdi_svd_plugin.compress(tiny_llama, tmp_path / "first", recipe, progress=False)
    monkeypatch.setattr("nxdi_svd_plugin.recover.choose.GROWTH_LIMIT", 0.5)
    record = recover(tmp_path / "first", data / "plain.txt", tmp_path / "second", Settings(**QUICK, learning_rate=3e-3))
    assert not record.kept_input
    assert max(m.growth for m in Report.read(tmp_path / "second").matrices if m.rank) == 0.5


def test_without_its_report_a_directory_is_refused(tiny_svd_llama, data, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no report\.json; only"):
        recover(tiny_svd_llama, data / "plain.txt", tmp_path / "out", Settings(**QUICK))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_vocabulary_is_refused(compressed, data, tmp_path):
    other = save_dense(tmp_path / "other", "llama", vocab_size=300)
    with pytest.raises(CheckpointError, match="has 300 tokens, the model has 259; give the model it was made from"):
        recover(compressed, data / "plain.txt", tmp_path / "out", Settings(**QUICK), teacher_dir=other)
    assert not (tmp_path / "out").exists()


def test_it_takes_the_lock_of_its_output(compressed, data, tmp_path):
    with OutputLock(tmp_path / "out"), pytest.raises(CheckpointError, match="another process is writing to"):
        recover(compressed, data / "plain.txt", tmp_path / "out", Settings(steps=1, batch=1, window=16))
    assert not (tmp_path / "out").exists()
