"""Text that a model writes itself: its distribution, its documents, what a killed run leaves, refused settings."""

import json

import pytest
import torch

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.cli.sample import on_device
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recover import sample
from nxdi_svd_plugin.texts import read_text


def run(capsys, *argv):
    code = main(["sample", *map(str, argv), "--json", "--quiet"])
    return code, capsys.readouterr()


def test_the_first_token_has_the_models_distribution(tiny_llama):
    """Counts of 3,000 draws against transformers' softmax: chi-squared within 6 of its standard deviations."""
    model, start, count, temperature = load_model(tiny_llama, torch.float32).eval(), 1, 3000, 0.7
    torch.manual_seed(0)
    settings = sample.Settings(length=16, batch=count, temperature=temperature)
    drawn = torch.tensor(sample.draw(model, [[start]] * count, settings))[:, 1]
    with torch.no_grad():
        logits = model(torch.tensor([[start]])).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1) * count
    found = torch.bincount(drawn, minlength=len(expected)).double()
    free = len(expected) - 1
    assert abs(float(((found - expected) ** 2 / expected).sum()) - free) < 6 * (2 * free) ** 0.5


def test_beginnings_of_several_lengths_are_gone_on_from(tiny_llama):
    """At a temperature near zero the draw is the argmax: of each beginning alone, without a pad, step by step."""
    model = load_model(tiny_llama, torch.float32).eval()
    begun = [[1, 5, 9, 30, 31], [1, 40], [1, 7, 8]]
    drawn = sample.draw(model, begun, sample.Settings(length=16, batch=3, temperature=1e-6))
    for row, ids in zip(drawn, begun, strict=True):
        for _ in range(16):
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        assert row == ids


def test_prompts_are_lines_or_records_and_are_taken_in_turn(tiny_llama, tmp_path, monkeypatch):
    lines, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("one two\n\nthree\n")
    records.write_text('{"text": "one\\ntwo"}\n{"text": " "}\n')
    tokenizer = load_tokenizer(tiny_llama)
    begun = sample.beginnings(tokenizer, 1, read_text(str(lines)))
    assert begun == [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in ("one two", "three")]
    assert len(sample.beginnings(tokenizer, 1, read_text(str(records)))) == 1
    monkeypatch.setattr("nxdi_svd_plugin.texts.CHUNK", 6)  # pieces end within lines
    assert sample.beginnings(tokenizer, 1, read_text(str(lines))) == begun
    taken = []
    monkeypatch.setattr(sample, "draw", lambda model, rows, settings: taken.extend(rows) or rows)
    list(sample.documents(None, tokenizer, begun, sample.Settings(tokens=65, length=16, batch=3)))
    assert taken == begun * 3


@pytest.mark.parametrize(("content", "said"), [("\n \n", "holds no beginnings"), ("a" * 5000, "shorter prompts")])
def test_refused_prompts(content, said, tiny_llama, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(content)
    code, printed = run(capsys, "--model", tiny_llama, "--output", tmp_path / "own.jsonl", "--prompts", prompts)
    assert code == 2 and said in printed.err and not (tmp_path / "own.jsonl").exists()


def test_documents_end_at_end_tokens_and_short_ones_are_left_out():
    row = [7] * 16 + [1] + [8] * 15 + [2] + [9] * 17
    assert sample.split(row, {1, 2}) == [[7] * 16, [9] * 17]


def test_the_command_writes_what_the_seeds_say(tiny_llama, tmp_path, capsys):
    """A batch has a seed of its own, so a shorter run is the beginning of a longer one; recover's reader takes it."""
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    sizes = ["--length", 24, "--batch", 3, "--seed", 5]
    code, said = run(capsys, "--model", tiny_llama, "--output", short, "--tokens", 70, *sizes)
    result = json.loads(said.out)
    assert code == 0 and result["tokens"] == 72 and result["documents"] == len(short.read_text().splitlines())
    run(capsys, "--model", tiny_llama, "--output", long, "--tokens", 73, *sizes)
    assert long.read_text().startswith(short.read_text()) and len(long.read_text()) > len(short.read_text())
    tokenizer, model = load_tokenizer(tiny_llama), on_device(load_model(tiny_llama))
    settings = sample.Settings(tokens=70, length=24, batch=3, seed=5)
    begun = sample.beginnings(tokenizer, sample.first_token(tokenizer, None), None)
    batches = list(sample.documents(model, tokenizer, begun, settings))
    assert [json.loads(line)["text"] for line in short.read_text().splitlines()] == [d for b in batches for d in b]


def test_what_is_there_is_not_overwritten(tiny_llama, tmp_path, capsys):
    output = tmp_path / "own.jsonl"
    output.write_text("mine")
    code, said = run(capsys, "--model", tiny_llama, "--output", output)
    assert code == 2 and "--overwrite" in said.err and output.read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", "0", "more than 0"),
        ("--tokens", "0", "at least 1"),
        ("--length", "8", "at least 16"),
        ("--start", "two words", "tokens; give one"),
        ("--length", "100000", "positions"),
    ],
)
def test_refused_before_anything_is_written(option, value, said, tiny_llama, tmp_path, capsys):
    code, printed = run(capsys, "--model", tiny_llama, "--output", tmp_path / "own.jsonl", option, value)
    assert code == 2 and said in printed.err and not (tmp_path / "own.jsonl").exists()


def test_a_tokenizer_without_bos_and_eos(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="no BOS"):
        sample.first_token(tokenizer, None)
