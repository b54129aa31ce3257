"""Texts to calibrate, to evaluate and to train on: one reader, which goes no further than its user needs tokens.

A file is plain UTF-8, or records as JSON lines (.jsonl, .ndjson) or one JSON array (.json); each may also end in .gz or
.zst. records.py says what a record may be.

"builtin" (calibration) ships with the package: half sentences and paragraphs on some 500 subjects, each of which
SmolLM2-135M-Instruct went on with at temperature 1 for up to 128 tokens (benchmarks/calibration_text.py), all of it
read. Text of a language model covers more of what models see than any one document, and what is calibrated on it
carries over to other texts (docs/accuracy.md).
"builtin-mixed" (scaling of predicted losses) ships too: a little of many kinds of writing, written for this package.
"builtin-heldout" (evaluation) is Python's pydoc_data.topics, technical English.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.texts.files import holds_records, opened
from nxdi_svd_plugin.texts.records import begins_with_record, document, read_records, whole_characters

BUILTIN = "builtin"
HELDOUT = "builtin-heldout"
MIXED = "builtin-mixed"
DATA = Path(__file__).parents[1] / "data"
SHIPPED = {BUILTIN: DATA / "calibration.txt", MIXED: DATA / "mixed.txt"}
TABLES = (".csv", ".tsv")
CHUNK = 1 << 20  # characters that are read, and tokenized, at once

logger = logging.getLogger(__name__)


class Text:
    """A text that every use reads anew.

    name: the file's, or that of a built-in text. path: of the file. content: of a built-in text, without a path.
    """

    def __init__(self, name: str, path: Path | None = None, content: str = "") -> None:
        self.name, self.path, self._content = name, path, content
        self._records = path is not None and holds_records(path)
        self._warned: set[str] = set()

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes, or of a built-in text in UTF-8."""
        digest = hashlib.sha256()
        with io.BytesIO(self._content.encode()) if self.path is None else open(self.path, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        return digest.hexdigest()

    @property
    def content(self) -> str:
        """All of it, documents joined by blank lines."""
        return "".join(self.pieces())

    def documents(self, tokenizer: Any = None) -> Iterator[str]:
        """What each record says, "" if nothing; plain text in pieces of about CHUNK characters.

        Args:
            tokenizer: its chat template, if it has one, renders conversations.
        Raises:
            CalibrationError: not UTF-8, damaged, no JSON, or unknown columns; names the line or the record.
        """
        with io.StringIO(self._content) if self.path is None else opened(self.path) as file:
            yield from self._of_records(file, tokenizer) if self._records else self._of_plain(file)

    def _of_records(self, file: TextIO, tokenizer: Any) -> Iterator[str]:
        replaced = 0
        try:
            for place, record in read_records(file, str(self.path)):
                text, halves = whole_characters(document(record, place, tokenizer))
                replaced += halves
                yield text
        finally:
            if replaced:
                self._warn(f"{replaced} halves of characters (lone surrogates) are replaced by U+FFFD")

    def _of_plain(self, file: TextIO) -> Iterator[str]:
        """Cut before the last blank of a piece, where no token begins in one piece and ends in the next."""
        rest = ""
        if self.path is not None and self.path.suffix.lower() in TABLES:
            self._warn("a table is read as plain text, with its columns and commas; make JSON lines of it")
        while block := file.read(CHUNK - len(rest)):
            text = rest + block
            if "\0" in block:
                raise CalibrationError(
                    f"text {self.path or self.name} holds zero bytes: is it an archive, UTF-16 or another binary file? "
                    "Give UTF-8 text"
                )
            if begins_with_record(text):
                self._warn("a line is a JSON record, and this is read as plain text; name the file .jsonl")
            cut = max(text.rfind(" "), text.rfind("\n")) if len(text) >= CHUNK else 0
            piece, rest = (text[:cut], text[cut:]) if cut > CHUNK // 2 else (text, "")
            yield piece
        if rest:
            yield rest

    def _warn(self, what: str) -> None:
        """Once a text, however often it is read."""
        kind = what.lstrip("0123456789")
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("text %s: %s", self.name, what)

    def beginnings(self, tokenizer: Any = None) -> Iterator[str]:
        """Each record, or each line of a plain text, that is not blank.

        Raises:
            CalibrationError: as `documents`.
        """
        found = self.documents(tokenizer)  # of a plain text these are pieces, which may end within a line
        yield from (text for text in (found if self._records else "".join(found).splitlines()) if text.strip())

    def pieces(self, tokenizer: Any = None) -> Iterator[str]:
        """All of it in pieces of about CHUNK characters: documents joined by blank lines, those without text left out.

        Raises:
            CalibrationError: as `documents`, and for nothing but blanks.
        """
        apart, held, blank = "\n\n" if self._records else "", "", True
        for text in self.documents(tokenizer):
            if self._records and not text.strip():
                continue
            held += text if blank else apart + text
            blank = blank and not text.strip()
            if len(held) >= CHUNK // 2:
                yield held
                held = ""
        if blank:
            raise CalibrationError(f"text {self.path or self.name} is empty; give a text with enough tokens")
        if held:
            yield held

    def token_ids(self, tokenizer: Any, enough: int | None = None) -> list[int]:
        """Token ids without special tokens: of the whole text, or of its first pieces that have `enough`.

        Raises:
            CalibrationError: as `pieces`.
        """
        ids: list[int] = []
        for piece in self.pieces(tokenizer):
            ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            if enough is not None and len(ids) >= enough:
                break
        return ids


def read_text(source: str) -> Text:
    """A text by name ("builtin", "builtin-mixed", "builtin-heldout") or path.

    Raises:
        CalibrationError: no such file, or one that may not be read. CheckpointError: a Git LFS pointer.
    """
    if source in SHIPPED:
        return Text(source, content=SHIPPED[source].read_text(encoding="utf-8"))
    if source == HELDOUT:
        return Text(source, content=_topics())
    path = Path(source).expanduser()
    if path.is_fifo() or path.is_char_device():
        raise CalibrationError(f"text {source} is no file but a stream, and texts are read twice; save it first")
    try:
        with open(path, "rb") as file:
            file.read(1)
        refuse_pointer(path)
    except (OSError, ValueError) as error:  # the second for a name with a zero byte
        said = getattr(error, "strerror", error)
        raise CalibrationError(
            f"text {source} cannot be read ({said}); give a text file, a .jsonl file, {BUILTIN}, {MIXED} or {HELDOUT}"
        ) from error
    return Text(path.name, path)


def _topics() -> str:
    """The unique paragraphs of pydoc_data.topics, topics in alphabetical order."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(p.strip() for name in sorted(topics) for p in topics[name].split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
