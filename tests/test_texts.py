"""Texts: the built-in ones share nothing; files and records, packed or not, are read; the unusable is named."""

import gzip
import hashlib
import importlib.util
import json
import logging
import sys
import types

import pytest

from nxdi_svd_plugin import texts
from nxdi_svd_plugin.errors import CalibrationError, MissingExtraError
from nxdi_svd_plugin.texts import BUILTIN, CHUNK, HELDOUT, read_text
from nxdi_svd_plugin.texts.records import alpaca


class Letters:
    """One token a character."""

    chat_template = None

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


class Chats(Letters):
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        if messages[0]["role"] == "tool":
            raise KeyError("roles must\nalternate")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_text(str(path))


def test_the_builtin_texts_share_no_paragraph():
    calibration, heldout = read_text(BUILTIN).content, read_text(HELDOUT).content
    assert not set(calibration.split("\n\n")) & set(heldout.split("\n\n"))
    assert len(calibration) > 100_000
    assert len(heldout) > 50_000  # varies with the Python version
    assert read_text(BUILTIN).sha256 == hashlib.sha256(calibration.encode()).hexdigest()


def test_a_text_file_and_its_hash(tmp_path):
    text = write(tmp_path / "a.txt", "héllo\n\nworld")
    assert (text.name, text.content) == ("a.txt", "héllo\n\nworld")
    assert text.sha256 == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()


RECORDS = [{"text": "one", "id": 1}, {"text": ""}, "two", {"instruction": "Add.", "input": "1 2", "output": "3"}]
RECORDS += [{"instruction": "Say.", "input": None, "output": "a"}, {"instruction": "No answer.", "output": " "}]
SAID = ["one", "two", alpaca("Add.", "1 2", "3"), alpaca("Say.", "", "a")]
LINES = "\n\n" + "".join(json.dumps(record) + "\n\n" for record in RECORDS)
FORMS = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.ndjson": LINES.replace("\n", "\r\n"),
    "a.json": " \n" + json.dumps(RECORDS, indent=1),
    "b.json": json.dumps(RECORDS),
    "c.jsonl": "\ufeff" + LINES,
    "d.jsonl.gz": gzip.compress(LINES.encode()),
    "e.JSON.GZ": gzip.compress(json.dumps(RECORDS).encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_records_in_every_form(name, tmp_path):
    text = write(tmp_path / name, FORMS[name])
    assert text.content == "\n\n".join(SAID) == "".join(map(chr, text.token_ids(Letters())))
    assert list(text.documents()) == [SAID[0], "", *SAID[1:], ""]


def test_the_alpaca_prompt():
    assert "### Input:\n1 2\n" in SAID[2] and "### Input" not in SAID[3] and SAID[3].endswith("### Response:\na")


def test_an_array_is_read_piece_by_piece(tmp_path, monkeypatch):
    """Records cut anywhere by the blocks, brackets and escapes inside strings, numbers that go on."""
    monkeypatch.setattr("nxdi_svd_plugin.texts.records.BLOCK", 3)
    rows = [{"text": 'a "]" \\ \u2028 , [' + "x" * n, "n": 10**n} for n in range(8)]
    text = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False, indent=1))
    assert list(text.documents()) == [row["text"] for row in rows]


def test_line_separators_of_unicode_inside_a_json_string_end_no_line(tmp_path):
    """json.dumps(ensure_ascii=False) writes them as they are, and web text has them."""
    said = ["a\u2028b", "c\u0085d\u2029e", "f"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in said]
    assert write(tmp_path / "a.jsonl", "\n".join(lines)).content == "\n\n".join(said)


def test_conversations_follow_the_chat_template(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [{"messages": messages}, {"messages": []}, {"messages": [{"role": "tool", "content": "x"}]}]
    text = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert list(text.documents(Letters()))[:2] == ["user: hi\n\nassistant: ho", ""]
    found = text.documents(Chats())
    assert [next(found), next(found)] == ["<user>hi<assistant>ho", ""]
    with pytest.raises(CalibrationError, match="line 3: the model's chat template refuses .*roles must.*alternate"):
        next(found)


def test_a_byte_order_mark_is_no_character(tmp_path):
    assert write(tmp_path / "a.txt", b"\xef\xbb\xbfab").content == "ab"


def test_lone_surrogates_are_replaced_with_one_warning(tmp_path, caplog):
    text = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d b\\udc00\\ud83d\\ude00"}\n{"text": "\\udfff"}\n')
    with caplog.at_level(logging.WARNING, "nxdi_svd_plugin"):
        assert [text.content, text.content] == ["a\ufffd b\ufffd\U0001f600\n\n\ufffd"] * 2
    assert caplog.text.count("3 halves of characters (lone surrogates) are replaced by U+FFFD") == 1


def test_records_with_the_name_of_a_text_are_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "nxdi_svd_plugin"):
        assert write(tmp_path / "a.txt", '{"text": "a"}\n').content == '{"text": "a"}\n'
        assert write(tmp_path / "b.txt", '{"a": "text"}\n').content
    assert caplog.text.count("JSON record") == 1 and "a.txt" in caplog.text


def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch):
    """The rest of the file is not even JSON, or not UTF-8."""
    monkeypatch.setattr(texts, "CHUNK", 64)
    monkeypatch.setattr("nxdi_svd_plugin.texts.records.BLOCK", 64)
    rows = "".join(json.dumps({"text": "word " * 9}) + "\n" for _ in range(3))
    for name, content in {
        "a.jsonl": rows + "no JSON",
        "a.json": "[" + rows.replace("\n", ",") + "no JSON",
        "a.txt": b"word " * 4000 + b"\xff",
    }.items():
        text = write(tmp_path / name, content)
        assert 40 <= len(text.token_ids(Letters(), 40)) < 200
        with pytest.raises(CalibrationError):
            text.token_ids(Letters())


@pytest.mark.parametrize("size", [1, 7, 64, 65, 200, 1000])
@pytest.mark.parametrize("word", ["word ", "a\n", "x" * 300])
def test_pieces_are_the_text_and_cut_before_a_blank(tmp_path, monkeypatch, size, word):
    monkeypatch.setattr(texts, "CHUNK", 64)
    content = (word * size)[: 5 * size]
    found = list(write(tmp_path / "a.txt", content).pieces())
    assert "".join(found) == content and all(len(piece) <= 2 * 64 for piece in found)
    if " " in word:
        assert all(piece.startswith(" ") for piece in found[1:])


def test_both_builtin_texts_are_one_piece():
    """What they are tokenized to, and so every published number, does not depend on where pieces are cut."""
    assert max(len(read_text(name).content) for name in (BUILTIN, HELDOUT)) < CHUNK


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("latin.txt", b"caf\xe9", "is not UTF-8 .byte 0xe9: "),
        ("utf16.txt", "café".encode("utf-16"), "is not UTF-8 but begins like UTF-16"),
        ("empty.jsonl", b"\n", "is empty"),
        ("none.json", b"[]", "is empty"),
        ("bad.jsonl", b'{"text": "a"}\n\n{"text"\n', "line 3 is not JSON .*expected one object a line, or one array"),
        ("bad.json", b'[{"text": "a"}, {"text"}]', "record 2 is not JSON"),
        ("cut.json", b'[{"text": "a"},', "ends inside its array, after record 1"),
        (
            "key.jsonl",
            b'{"prompt": "a", "answer": "b"}\n',
            "line 1 has the columns: answer, prompt; expected text",
        ),
        ("type.jsonl", b'{"text": 3}\n', "line 1: text is not a string"),
        ("number.jsonl", b"3\n", "line 1 has the columns: no columns but int"),
        ("list.jsonl", b"[1]\n", "record 1 has the columns: no columns but int"),
        ("chat.jsonl", b'{"messages": [{"role": "a"}]}\n', "line 1: messages is no list of objects"),
        ("a.txt.gz", b"no gzip", "cannot be read .*is it damaged"),
        ("b.txt.gz", gzip.compress(b"word " * 99, mtime=0)[:-9], "cannot be read .*is it damaged"),
    ],
)
def test_unusable_texts(tmp_path, name, content, message):
    text = write(tmp_path / name, content)
    with pytest.raises(CalibrationError, match=message) as caught:
        text.token_ids(Letters())
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_texts_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(CalibrationError, match="cannot be read .*builtin-heldout"):
            read_text(str(path))


def test_zstandard_without_a_library(tmp_path, monkeypatch):
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install zstandard, or use"):
        write(tmp_path / "a.jsonl.zst", b"").token_ids(Letters())


def test_zstandard_by_the_interface_of_python_3_14(tmp_path, monkeypatch):
    """A stand-in with the names of compression.zstd, which packs as gzip does."""
    library = types.ModuleType("compression.zstd")
    library.open, library.ZstdError = gzip.open, OSError
    monkeypatch.setitem(sys.modules, "compression", types.ModuleType("compression"))
    monkeypatch.setitem(sys.modules, "compression.zstd", library)
    assert write(tmp_path / "a.jsonl.zst", FORMS["d.jsonl.gz"]).content == "\n\n".join(SAID)


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is None, reason="zstandard is not installed")
def test_zstandard_files_of_several_frames(tmp_path):
    import zstandard

    packed = b"".join(zstandard.ZstdCompressor().compress(line.encode()) for line in LINES.splitlines(True))
    assert write(tmp_path / "a.jsonl.zst", packed).content == "\n\n".join(SAID)
    with pytest.raises(CalibrationError, match="cannot be read .*is it damaged"):
        write(tmp_path / "b.jsonl.zst", b"no frame" * 9).token_ids(Letters())


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("some words")
    assert (read_text("~/text.txt").name, read_text("~/text.txt").sha256) == (
        "text.txt",
        read_text(str(tmp_path / "text.txt")).sha256,
    )
