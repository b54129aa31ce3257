"""JSON records and what each says: a text, an instruction with its answer, or a conversation.

| record | its text |
|---|---|
| `"..."`, `{"text": "..."}` | as it is |
| `{"instruction", "input" (may be missing or empty), "output"}` | the Alpaca prompt with its answer, if there is one |
| `{"messages": [{"role", "content"}, ...]}` | the tokenizer's chat template, else `role: content` lines |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from nxdi_svd_plugin.errors import CalibrationError

# The wording that the Alpaca data set is published with (tatsu-lab/stanford_alpaca).
TASK = "Below is an instruction that describes a task"
CONTEXT = ", paired with an input that provides further context"
ANSWER = ". Write a response that appropriately completes the request."
COLUMNS = "text; instruction, input (may be empty) and output; or messages"
UNREADABLE = (ValueError, RecursionError)
"""What json raises: the second for thousands of brackets inside each other."""
ARRAY = re.compile(r'\s*\[\s*\{\s*"(text|instruction|input|output|messages)"\s*:')
LONE = re.compile("[\ud800-\udfff]")
BLOCK = 1 << 16  # characters of an array that are read at once
LONGEST = 1 << 26  # characters of one record of an array


def read_records(file: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """(where it is, record) of JSON lines, or of one JSON array; one record is in memory at a time.

    Raises:
        CalibrationError: not JSON; names the line or the record.
    """
    number, first = 1, file.read(1)
    while first.isspace():
        number, first = number + (first == "\n"), file.read(1)
    if first == "[":
        yield from _array(file, name)
        return
    line = first + file.readline()
    while line:  # not splitlines, which also cuts at the line separators of Unicode that JSON allows in a string
        if line.strip():
            yield f"{name} line {number}", _parse(line, f"{name} line {number}")
        number, line = number + 1, file.readline()


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except UNREADABLE as error:
        raise CalibrationError(f"{place} is not JSON ({error}); expected one object a line, or one array") from error


def _array(file: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """The records behind the bracket that opens an array."""
    decoder, text, number = json.JSONDecoder(), "", 1
    while True:
        block = file.read(BLOCK)
        text = (text + block).lstrip(" \t\r\n,")
        while text and text[0] != "]":
            try:
                record, end = decoder.raw_decode(text)
            except UNREADABLE as error:
                if block and len(text) < LONGEST:
                    break  # it goes on in the next block
                raise CalibrationError(f"{name} record {number} is not JSON ({error}); is the file cut off?") from error
            yield f"{name} record {number}", record
            number, text = number + 1, text[end:].lstrip(" \t\r\n,")
        if text[:1] == "]":
            if (text[1:] + file.read(BLOCK)).strip():
                raise CalibrationError(
                    f"{name} goes on after its array of {number - 1} records; expected one array, or one object a line"
                )
            return
        if not block:
            raise CalibrationError(f"{name} ends inside its array, after record {number - 1}; is the file cut off?")


def document(record: Any, place: str, tokenizer: Any = None) -> str:
    """The text of one record, "" if it has none.

    Raises:
        CalibrationError: unknown columns, or values that are no text; names the place.
    """
    if isinstance(record, str):
        return record
    columns = sorted(record) if isinstance(record, dict) else []
    if "text" in columns:
        return _strings(record, place, "text")[0]
    if {"instruction", "output"} <= set(columns):
        return alpaca(*_strings(record, place, "instruction", "input", "output"))
    if "messages" in columns:
        return conversation(record["messages"], place, tokenizer)
    found = ", ".join(columns) if columns else f"no columns but {type(record).__name__}"
    raise CalibrationError(f"{place} has the columns: {found}; expected {COLUMNS}")


def _strings(record: dict[str, Any], place: str, *names: str) -> list[str]:
    values = {name: "" if record.get(name) is None else record[name] for name in names}
    wrong = [name for name, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise CalibrationError(f"{place}: {', '.join(wrong)} is not a string")
    return list(values.values())


def alpaca(instruction: str, input: str, output: str) -> str:
    """The Alpaca prompt followed by its answer; empty when there is no answer."""
    if not output.strip():
        return ""
    context = f"\n\n### Input:\n{input}" if input.strip() else ""
    head = TASK + (CONTEXT if context else "") + ANSWER
    return f"{head}\n\n### Instruction:\n{instruction}{context}\n\n### Response:\n{output}"


def conversation(messages: Any, place: str, tokenizer: Any = None) -> str:
    """A conversation by the tokenizer's chat template; without one a paragraph `role: content` for each message.

    Raises:
        CalibrationError: no list of objects with role and content, or one that the template refuses.
    """
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise CalibrationError(f"{place}: messages is no list of objects with the strings role and content")
    if not messages:
        return ""
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return by_template(tokenizer, messages, place)


def by_template(tokenizer: Any, messages: list[dict[str, str]], place: str, **options: Any) -> str:
    """Messages as the tokenizer's chat template writes them.

    Args:
        options: of `apply_chat_template`.
    Raises:
        CalibrationError: the template is damaged or refuses them; names the place.
    """
    try:
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # whatever a template raises
        said = " ".join(str(error).split())[:200]
        raise CalibrationError(f"{place}: the model's chat template refuses these messages ({said})") from error
    return rendered


def whole_characters(text: str) -> tuple[str, int]:
    """The text with U+FFFD for every lone surrogate, which no encoding can hold, and how many there were."""
    return LONE.subn("\N{REPLACEMENT CHARACTER}", text)


def begins_with_record(text: str) -> bool:
    """Whether plain text begins with a line that is a JSON object with the columns of a record, or an array of such."""
    if ARRAY.match(text):
        return True
    if not text.startswith("{"):
        return False
    try:
        found = json.loads(text.partition("\n")[0])
    except UNREADABLE:
        return False
    return bool({"text", "instruction", "messages"} & set(found))
