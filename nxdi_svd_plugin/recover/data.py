"""Training text for recovery: plain text, or JSON lines in the format of yahma/alpaca-cleaned, as windows of tokens.

Documents are joined with the end-of-text token and cut into windows of equal length, so a long document fills several
windows and short ones share one: nothing is padded and nothing but the tail of the last window is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.reader import file_sha256
from nxdi_svd_plugin.errors import CalibrationError

# The wording that the Alpaca data set is published with (tatsu-lab/stanford_alpaca).
TASK = "Below is an instruction that describes a task"
CONTEXT = ", paired with an input that provides further context"
ANSWER = ". Write a response that appropriately completes the request."
CHUNK = 1 << 20  # characters of plain text tokenized at once
COLUMNS = "instruction, input (may be empty) and output, or text"


@dataclass(frozen=True)
class Windows:
    """Tokens [windows, length] of one file, and what it was: SHA-256 of the bytes, documents read, documents empty."""

    tokens: torch.Tensor
    sha256: str
    documents: int
    empty: int


def load_windows(path: Path, tokenizer: Any, length: int, limit: int | None = None) -> Windows:
    """Windows of `length` tokens from the start of a file; reading stops after `limit` windows.

    Raises:
        CalibrationError: unreadable, not UTF-8, not JSON lines, wrong columns, or less text than one window.
    """
    pieces, count, documents, empty = [], 0, 0, 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in read_documents(path):
        documents += 1
        if not text.strip():
            empty += 1
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
        pieces.append(torch.tensor(ids, dtype=torch.long))
        count += len(ids)
        if limit is not None and count >= limit * length:
            break
    windows = count // length
    if windows == 0:
        raise CalibrationError(
            f"{path} has {count} tokens in {documents} documents ({empty} empty); one window needs {length}. "
            "Give more text or a smaller --window"
        )
    windows = windows if limit is None else min(windows, limit)
    return Windows(torch.cat(pieces)[: windows * length].view(windows, length), file_sha256(path), documents, empty)


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file: records of .json / .jsonl, else plain text in pieces of CHUNK characters."""
    try:
        with open(path, encoding="utf-8") as file:
            if path.suffix in {".json", ".jsonl"}:
                yield from (document(record, path, line) for line, record in records(file, path))
            else:
                yield from iter(lambda: file.read(CHUNK), "")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text: {error}. Convert it first") from error


def records(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, record) of JSON lines, or of one JSON array as alpaca_data_cleaned.json is."""
    first = True
    for number, line in enumerate(file, 1):
        if first and line.lstrip().startswith("["):
            yield from enumerate(parse(line + file.read(), path, 1), 1)
        elif line.strip():
            yield number, parse(line, path, number)
        first = first and not line.strip()


def parse(text: str, path: Path, number: int) -> Any:
    """One JSON value."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path} line {number} is not JSON ({error}); expected one object a line") from error


def document(record: Any, path: Path, number: int) -> str:
    """The text of one record: `text` as it is, or the Alpaca prompt with its answer; blank if it has no answer."""
    columns = sorted(record) if isinstance(record, dict) else []
    if "text" in columns:
        values = {"text": record["text"]}
    elif {"instruction", "output"} <= set(columns):
        values = {name: record.get(name) or "" for name in ("instruction", "input", "output")}
    else:
        found = ", ".join(columns) if columns else f"no columns but {type(record).__name__}"
        raise CalibrationError(f"{path} record {number} has the columns: {found}; expected {COLUMNS}")
    wrong = [name for name, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise CalibrationError(f"{path} record {number}: {', '.join(wrong)} is not a string")
    return values["text"] if "text" in values else alpaca(**values)


def alpaca(instruction: str, input: str, output: str) -> str:
    """The Alpaca prompt followed by its answer; empty when there is no answer."""
    if not output.strip():
        return ""
    context = f"\n\n### Input:\n{input}" if input.strip() else ""
    head = TASK + (CONTEXT if context else "") + ANSWER
    return f"{head}\n\n### Instruction:\n{instruction}{context}\n\n### Response:\n{output}"
