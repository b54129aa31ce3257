"""Recovery data: Alpaca JSON lines and plain text become full windows; every other file is refused by name."""

import json

import pytest
import torch

from nxdi_svd_plugin.checkpoint.reader import file_sha256
from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.recover.data import load_windows
from nxdi_svd_plugin.texts.records import alpaca


class Letters:
    """One token a character; 0 ends a text."""

    eos_token_id = 0

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def decode(tokens):
    return "".join("|" if i == 0 else chr(i) for i in tokens.flatten())


def test_alpaca_lines_become_prompts_joined_by_the_end_token(tmp_path):
    first = {"instruction": "Add.", "input": "1 2", "output": "3"}
    second = {"instruction": "Greet.", "input": "", "output": "Hello"}
    path = write(tmp_path / "a.jsonl", first, second)
    got = load_windows(path, Letters(), 10)
    expected = alpaca(**first) + "|" + alpaca(**second) + "|"
    assert "### Input:\n1 2\n" in expected and expected.count("### Input") == 1
    assert decode(got.tokens) == expected[: len(expected) // 10 * 10]
    assert got.tokens.shape == (len(expected) // 10, 10) and got.tokens.dtype == torch.long
    assert (got.documents, got.empty, got.sha256) == (2, 0, file_sha256(path))


def test_an_array_as_published_reads_like_lines(tmp_path):
    rows = [{"instruction": "a", "input": "", "output": str(i)} for i in range(3)]
    (tmp_path / "a.json").write_text("\n\n" + json.dumps(rows, indent=1))
    lines = load_windows(write(tmp_path / "a.jsonl", *rows), Letters(), 7).tokens
    assert torch.equal(load_windows(tmp_path / "a.json", Letters(), 7).tokens, lines)


def test_a_text_longer_than_a_window_fills_several(tmp_path):
    path = write(tmp_path / "long.jsonl", {"text": "abcdefghij" * 5}, {"text": "xyz"})
    got = load_windows(path, Letters(), 8).tokens
    assert decode(got) == ("abcdefghij" * 5 + "|xyz|")[:48]


def test_plain_text_and_the_limit(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("0123456789" * 10)
    assert load_windows(path, Letters(), 30).tokens.shape == (3, 30)
    assert decode(load_windows(path, Letters(), 5, limit=3).tokens) == "012345678901234"


def test_records_without_an_answer_are_left_out_and_counted(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"instruction": "q", "output": " "},
        {"instruction": "q", "output": None},
        {"instruction": "q", "output": "yes"},
    )
    got = load_windows(path, Letters(), 5)
    assert (got.documents, got.empty) == (3, 2)
    assert decode(got.tokens).startswith("Below")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "has 0 tokens in 0 documents"),
        ("blank.jsonl", '\n\n{"text": ""}\n', "has 0 tokens in 1 documents \\(1 empty\\)"),
        ("short.txt", "abc", "has 4 tokens .* one window needs 16.*--window"),
        (
            "keys.jsonl",
            '{"prompt": "a", "completion": "b"}\n',
            "the columns: completion, prompt; expected text; instr",
        ),
        ("list.jsonl", "3\n", "line 1 has the columns: no columns but int"),
        ("type.jsonl", '{"text": 3}\n', "line 1: text is not a string"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    ],
)
def test_bad_data_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CalibrationError, match=message):
        load_windows(tmp_path / name, Letters(), 16)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="cannot be read .No such file"):
        load_windows(tmp_path / "none.txt", Letters(), 16)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 20)
    with pytest.raises(CalibrationError, match="not UTF-8"):
        load_windows(tmp_path / "latin.txt", Letters(), 16)
