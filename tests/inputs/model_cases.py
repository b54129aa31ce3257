"""Model directories as they are downloaded, edited and mixed up."""

import shutil

from cases import Case

COMPRESS = "compress --model model --output out --block 2 --ratio 0.2 --samples 2 --length 32 --calibration text.txt"
EVALUATE = "evaluate --model model --text text.txt --window 32 --max-tokens 64"
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 8


def dense(folder, model="llama"):
    """A dense model and a text."""
    folder.write("text.txt", TEXT)
    return folder.copy(model, "model")


def no_config(folder):
    (dense(folder) / "config.json").unlink()


def pickle(folder):
    directory = dense(folder)
    shutil.move(directory / "model.safetensors", directory / "pytorch_model.bin")


CASES = [
    Case("a Llama or Qwen3 directory", COMPRESS, dense),
    Case("a directory without config.json", COMPRESS, no_config, "model has no config.json", 1),
    Case(
        "weights as a pickle", COMPRESS, pickle, "pytorch_model.bin is a pickle, which can run code when it is read", 1
    ),
]
