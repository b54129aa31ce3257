"""Texts: the built-in texts share nothing, files and JSON lines are read, and what cannot be used is named."""

import hashlib
import json

import pytest

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.texts import BUILTIN, HELDOUT, read_text


def test_the_builtin_texts_share_no_paragraph():
    calibration, heldout = read_text(BUILTIN).content, read_text(HELDOUT).content
    assert not set(calibration.split("\n\n")) & set(heldout.split("\n\n"))
    assert len(calibration) > 100_000
    assert len(heldout) > 50_000  # varies with the Python version


def test_a_text_file_and_its_hash(tmp_path):
    (tmp_path / "a.txt").write_text("héllo\n\nworld", encoding="utf-8")
    text = read_text(str(tmp_path / "a.txt"))
    assert (text.name, text.content) == ("a.txt", "héllo\n\nworld")
    assert text.sha256 == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()


def test_json_lines_are_joined_by_blank_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 1}\n\n{"text": "two"}\n"three"\n')
    assert read_text(str(tmp_path / "a.jsonl")).content == "one\n\ntwo\n\nthree"


def test_line_separators_of_unicode_inside_a_json_string_end_no_line(tmp_path):
    """json.dumps(ensure_ascii=False) writes them as they are, and web text has them."""
    texts = ["a\u2028b", "c\u0085d\u2029e", "f"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_text(str(tmp_path / "a.jsonl")).content == "\n\n".join(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "cannot be read .*builtin-heldout"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("latin.txt", b"caf\xe9", "is not UTF-8 .* at byte 3"),
        ("empty.jsonl", b"\n", "is empty"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
        ("key.jsonl", b'{"content": "a"}\n', 'line 1 has content; expected an object with a string "text"'),
        ("type.jsonl", b'{"text": 3}\n', 'line 1 has text; expected an object with a string "text"'),
        ("list.jsonl", b"[1]\n", 'line 1 has list; expected an object with a string "text"'),
    ],
)
def test_unusable_texts(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_text(str(tmp_path / name))
    with pytest.raises(CalibrationError):
        read_text(str(tmp_path))
