"""Model directories as clones, caches and other programs leave them."""

import json
import shutil

from cases import Case
from model_cases import COMPRESS, EVALUATE, TEXT, dense

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 269060552\n"
SNAPSHOT = "hub/models--org--name/snapshots/4e20de36"


def pointer(name):
    """A builder: a dense model, of which one file is a Git LFS pointer."""
    return lambda folder: (dense(folder) / name).write_text(POINTER)


def in_cache(folder):
    """A dense model as the hub's client stores it: links, in a folder named after a commit."""
    folder.write("text.txt", TEXT)
    blobs = folder.copy("llama", "blobs")
    directory = folder.path / SNAPSHOT
    directory.mkdir(parents=True)
    for path in blobs.iterdir():
        (directory / path.name).symlink_to(path)


def linked_to_nothing(name):
    """A builder: a dense model, of which one file is a link to a file that is not there."""

    def build(folder):
        path = dense(folder) / name
        path.unlink()
        path.symlink_to("../blobs/4e20de36")

    return build


def cached_card(folder):
    """A dense model whose card has values that YAML makes something else of."""
    in_cache(folder)
    folder.write(f"{SNAPSHOT}/README.md", "---\nlanguage:\n- no\nlicense: mit\nx: " + "[" * 9999 + "\n---\n")


def output_link(folder):
    dense(folder)
    (folder.path / "out").symlink_to("nowhere")


def changed(name, **values):
    """A builder: a dense model with these values in one of its JSON files."""

    def build(folder):
        path = dense(folder) / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return build


def saved_again(folder):
    """What save_pretrained leaves of a compressed model."""
    directory = folder.copy("svd_llama", "model")
    for path in directory.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()


def linked(folder):
    folder.write("text.txt", TEXT)
    shutil.move(folder.copy("llama", "elsewhere"), folder.path / "there")
    (folder.path / "model").symlink_to("there")


BEAMS = {"num_beams": 4, "repetition_penalty": 9.0, "do_sample": True, "top_k": 5, "temperature": 0.1}
IS_POINTER = "is a Git LFS pointer, not the file itself; run `git lfs pull`"
CASES = [
    Case("a snapshot in the hub's cache", COMPRESS.replace("--model model", SNAPSHOT), in_cache),
    Case("a link to a directory", EVALUATE, linked),
    Case("weights that are a Git LFS pointer", COMPRESS, pointer("model.safetensors"), IS_POINTER, 1),
    Case("the same, to measure", EVALUATE, pointer("model.safetensors"), IS_POINTER, 1),
    Case("a tokenizer that is a Git LFS pointer", COMPRESS, pointer("tokenizer.json"), IS_POINTER, 1),
    Case("a config that is a Git LFS pointer", "plan model", pointer("config.json"), IS_POINTER, 1),
    Case("`quantization_config` null", COMPRESS, changed("config.json", quantization_config=None)),
    Case("`quantization_config` null, measured", EVALUATE, changed("config.json", quantization_config=None)),
    Case(
        "flash attention in config.json, where it is not installed",
        EVALUATE,
        changed("config.json", _attn_implementation="flash_attention_2"),
    ),
    Case(
        "beams, penalties and sampling in generation_config.json",
        "generate model --prompt a --max-new-tokens 3",
        changed("generation_config.json", **BEAMS),
    ),
    Case("what save_pretrained wrote of a compressed model", "verify model", saved_again),
    Case(
        "weights that are a link to nothing",
        COMPRESS,
        linked_to_nothing("model.safetensors"),
        "model/model.safetensors is a link to a file that is not there; download the model again",
        1,
    ),
    Case(
        "a tokenizer that is a link to nothing",
        EVALUATE,
        linked_to_nothing("tokenizer.json"),
        "model/tokenizer.json is a link to a file that is not there; download the model again",
        1,
    ),
    Case(
        "a config that is a link to nothing", "plan model", linked_to_nothing("config.json"), "is a link to a file", 1
    ),
    Case(
        "a folder of the hub's cache",
        "plan hub/models--org--name",
        in_cache,
        f"hub/models--org--name has no config.json; give one of its snapshots, {SNAPSHOT}",
        1,
    ),
    Case("a card that is no YAML", COMPRESS.replace("--model model", SNAPSHOT), cached_card),
    Case(
        "an output that is a link to nothing",
        COMPRESS,
        output_link,
        "output out is a link to a directory that is not there; make it, or remove the link",
        1,
    ),
]
