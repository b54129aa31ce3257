"""Texts to calibrate, to evaluate and to train on."""

from cases import Case
from model_cases import COMPRESS, EVALUATE, TEXT, dense


def text(content, name="text.txt"):
    """A builder: a dense model, and a text of this content."""

    def build(folder):
        dense(folder)
        folder.write(name, content)

    return build


CASES = [
    Case("plain UTF-8 text", EVALUATE, text(TEXT)),
    Case("a text in another encoding", EVALUATE, text(b"caf\xe9" * 99), "text text.txt is not UTF-8", 1),
    Case("too short a text", COMPRESS, text("a few words"), "the calibration text has 11 tokens", 1),
]
