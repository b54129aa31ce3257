"""Texts to calibrate and to evaluate on: a file, JSON lines, or one of two texts that are on every machine.

"builtin" (calibration) ships with the package: pieces of about 512 tokens on 55 subjects, drawn from SmolLM2-135M-
Instruct at temperature 1 by benchmarks/calibration_text.py. Text of a language model covers more of what models see
than any one document, and what is calibrated on it carries over to other texts (docs/accuracy.md).
"builtin-heldout" (evaluation) is Python's pydoc_data.topics, technical English.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from nxdi_svd_plugin.errors import CalibrationError

BUILTIN = "builtin"
HELDOUT = "builtin-heldout"
SHIPPED = Path(__file__).parent / "data" / "calibration.txt"


@dataclass(frozen=True)
class Text:
    """A text and where it came from; `sha256` is that of its UTF-8 bytes."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Hash that identifies the text."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(source: str) -> Text:
    """A text by name ("builtin", "builtin-heldout") or path (.jsonl: the "text" of each line, joined by blank lines).

    Raises:
        CalibrationError: a missing, undecodable or empty file, or a line without "text".
    """
    if source == BUILTIN:
        return Text(source, SHIPPED.read_text(encoding="utf-8"))
    if source == HELDOUT:
        return Text(source, _topics())
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(
            f"text {source} cannot be read ({error.strerror}); give a text file, a .jsonl file, {BUILTIN} or {HELDOUT}"
        ) from error
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"text {source} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from error
    if path.suffix == ".jsonl":
        content = "\n\n".join(
            # not splitlines, which also cuts at the line separators of Unicode that JSON allows in a string
            _jsonl_text(path, i, line)
            for i, line in enumerate(content.split("\n"), 1)
            if line.strip()
        )
    if not content.strip():
        raise CalibrationError(f"text {source} is empty; give a text with enough tokens for all samples")
    return Text(path.name, content)


def _jsonl_text(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CalibrationError(f"{path} line {number} is not JSON ({error}); expected one object a line") from error
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise CalibrationError(f'{path} line {number} has {keys}; expected an object with a string "text"')
    return text


def _topics() -> str:
    """The unique paragraphs of pydoc_data.topics, topics in alphabetical order."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(p.strip() for name in sorted(topics) for p in topics[name].split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
