"""Texts to calibrate, to evaluate and to train on."""

import gzip
import io
import json
import os
import tarfile

from cases import Case
from model_cases import COMPRESS, EVALUATE, TEXT, dense
from reports import write_report


def text(content, name="text.txt"):
    """A builder: a dense model, and a text of this content."""

    def build(folder):
        dense(folder)
        folder.write(name, content)

    return build


def calibrated(name):
    """compress on a text of this name, with enough tokens and a hidden size that few tokens suffice for."""
    return COMPRESS.replace("--samples 2", "--samples 6").replace("text.txt", name)


def evaluated(name):
    return EVALUATE.replace("text.txt", name)


CHAT = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}]
ALPACA = {"instruction": "Say it.", "input": TEXT, "output": "Said."}
LINES = "".join(json.dumps({"text": TEXT}) + "\n" for _ in range(3))
RECOVER = "recover --model model --data {} --output out --steps 1 --batch 1 --micro-batch 1 --window 32 --lora-rank 2"
RECOVER += " --validation-windows 1"
TWO_TEXTS = RECOVER.format("a.txt") + " --validation b.txt"
FOREIGN = "the tokenizer of model gives id 5000, the model has 259 embeddings; copy the model's own tokenizer"


def trained(name, content):
    """A case of recover: a compressed model with its report, and a text."""

    def build(folder):
        write_report(dense(folder, "svd_llama"))
        folder.write(name, content)

    return RECOVER.format(name), build


def foreign_tokens(name):
    """A builder: `trained`, with a tokenizer whose z is a token that the model does not have; it is in text `name`."""

    def build(folder):
        write_report(dense(folder, "svd_llama"))
        path = folder.path / "model" / "tokenizer.json"
        found = json.loads(path.read_text())
        found["model"]["vocab"]["z"] = 5000
        path.write_text(json.dumps(found))
        folder.write("a.txt", TEXT)
        folder.write("b.txt", TEXT * 2)
        folder.write(name, "zz" * 99 + (folder.path / name).read_text())

    return build


def archive():
    """A .tar.gz of one text."""
    file, content = io.BytesIO(), (TEXT * 3).encode()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def pipe(folder):
    dense(folder)
    os.mkfifo(folder.path / "pipe")


ZEROS = "text text.txt holds zero bytes: is it an archive, UTF-16 or another binary file? Give UTF-8 text"
CASES = [
    Case("plain UTF-8 text", EVALUATE, text(TEXT)),
    Case("JSON lines with text", calibrated("a.jsonl"), text(LINES, "a.jsonl")),
    Case("JSON lines in a .JSONL file", calibrated("a.JSONL"), text(LINES, "a.JSONL")),
    Case("JSON lines with text, to train on", *trained("a.jsonl", LINES)),
    Case("one JSON array", calibrated("a.json"), text(json.dumps([ALPACA] * 3), "a.json")),
    Case("instruction, input and output", evaluated("a.jsonl"), text(json.dumps(ALPACA), "a.jsonl")),
    Case("instruction, input and output, to train on", *trained("a.json", json.dumps([ALPACA] * 3))),
    Case(
        "chat messages (by the model's chat template)",
        evaluated("a.jsonl"),
        text(json.dumps({"messages": CHAT}), "a.jsonl"),
    ),
    Case("chat messages to train on", *trained("a.jsonl", json.dumps({"messages": CHAT}) + "\n")),
    Case("a packed text (.gz)", calibrated("a.jsonl.gz"), text(gzip.compress(LINES.encode()), "a.jsonl.gz")),
    Case("a byte order mark", EVALUATE, text(b"\xef\xbb\xbf" + TEXT.encode())),
    Case(
        "half a character in JSON (a lone surrogate)",
        evaluated("a.jsonl"),
        text(LINES.replace("bright", "\\ud83d"), "a.jsonl"),
        "text a.jsonl: 24 halves of characters (lone surrogates) are replaced by U+FFFD",
    ),
    Case(
        "JSON records in a .txt file",
        EVALUATE,
        text(LINES),
        "text text.txt: a line is a JSON record, and this is read as plain text; name the file .jsonl",
    ),
    Case(
        "a JSON array in a .txt file",
        EVALUATE,
        text(json.dumps([ALPACA] * 3, indent=1)),
        "text text.txt: a line is a JSON record, and this is read as plain text; name the file .jsonl",
    ),
    Case(
        "a table (.csv, .tsv)",
        evaluated("a.csv"),
        text("id,said\n" + f"1,{TEXT}\n" * 3, "a.csv"),
        "text a.csv: a table is read as plain text, with its columns and commas; make JSON lines of it",
    ),
    Case(
        "fewer calibration tokens than 4 times the hidden size",
        COMPRESS,
        text(TEXT),
        "64 calibration tokens are few for hidden size 44, and the model may be damaged on other text; give at "
        "least 176",
    ),
    Case("no such text", evaluated("none.txt"), dense, "text none.txt cannot be read (No such file or directory)", 1),
    Case("an empty text", EVALUATE, text(" \n"), "text text.txt is empty", 1),
    Case("too short a text", COMPRESS, text("a few words"), "the calibration text has 11 tokens", 1),
    Case("too short a text to train on", *trained("a.txt", "a few words"), "a.txt has 12 tokens in 1 documents", 1),
    Case("tokens that the model has not, to train on", TWO_TEXTS, foreign_tokens("a.txt"), FOREIGN, 1),
    Case("the same in the text to choose by", TWO_TEXTS, foreign_tokens("b.txt"), FOREIGN, 1),
    Case("a text in another encoding", EVALUATE, text(b"caf\xe9" * 99), "text text.txt is not UTF-8 (byte 0xe9", 1),
    Case("UTF-16 without its mark", EVALUATE, text(TEXT.encode("utf-16-le")), ZEROS, 1),
    Case(
        "an archive (.tar.gz)",
        evaluated("a.tar.gz"),
        text(archive(), "a.tar.gz"),
        ZEROS.replace("text.txt", "a.tar.gz"),
        1,
    ),
    Case("a pipe (`<(...)`, /dev/stdin)", evaluated("pipe"), pipe, "text pipe is no file but a stream", 1),
    Case("UTF-16", EVALUATE, text(TEXT.encode("utf-16")), "text text.txt is not UTF-8 but begins like UTF-16", 1),
    Case(
        "other columns",
        evaluated("a.jsonl"),
        text('{"question": "a", "answer": "b"}\n', "a.jsonl"),
        "a.jsonl line 1 has the columns: answer, question; expected text; instruction, input (may be empty) and "
        "output; or messages",
        1,
    ),
    Case("a line that is no JSON", evaluated("a.jsonl"), text(LINES + "{", "a.jsonl"), "a.jsonl line 4 is not JSON", 1),
    Case(
        "a JSON array that was cut off",
        evaluated("a.json"),
        text(json.dumps([ALPACA] * 3)[:-1], "a.json"),
        "a.json ends inside its array, after record 3; is the file cut off?",
        1,
    ),
    Case(
        "JSON of ten thousand brackets inside each other",
        evaluated("a.jsonl"),
        text('{"text": ' + "[" * 10_000, "a.jsonl"),
        "a.jsonl line 1 is not JSON",
        1,
    ),
    Case("a damaged .gz", evaluated("a.txt.gz"), text(b"no gzip", "a.txt.gz"), "text a.txt.gz cannot be read", 1),
    Case(
        "an array a line",
        EVALUATE.replace("text.txt", "a.jsonl"),
        text('["one"]\n["two"]\n', "a.jsonl"),
        "a.jsonl goes on after its array of 1 records; expected one array, or one object a line",
        1,
    ),
    Case(
        "a text that is a Git LFS pointer",
        EVALUATE,
        text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 2690\n"),
        "text.txt is a Git LFS pointer, not the file itself",
        1,
    ),
]
