"""Model directories as they are downloaded, edited and mixed up."""

import json
import shutil

import torch
from cases import Case
from reports import write_report
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.checkpoint.reader import Reader

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


def edited(model="llama", file="config.json", **changes):
    """A builder: a model whose JSON file has other values; None removes a key."""

    def build(folder):
        edit_json(dense(folder, model) / file, **changes)

    return build


def edit_json(path, **changes):
    """Other values in a JSON object; None removes a key."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def tokenizer_with_code(tokenizer_class):
    """A builder: a tokenizer that names a class in a file of its own."""

    def build(folder):
        directory = dense(folder)
        (directory / "evil.py").write_text(EVIL)
        auto_map = {"AutoTokenizer": ["evil.Evil", None]}
        edit_json(directory / "tokenizer_config.json", tokenizer_class=tokenizer_class, auto_map=auto_map)

    return build


def custom_generate(folder):
    directory = dense(folder, "svd_llama")
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(EVIL)


def pair(weights=None, **changes):
    """A builder: a compressed model, and beside it a base whose config and first weight of this name are other ones."""

    def build(folder):
        dense(folder, "svd_llama")
        base = folder.copy("llama", "base")
        edit_json(base / "config.json", **changes)
        fingerprint = Reader(folder.models["llama"]).fingerprint()
        source = {"name": "tiny", "model_type": "llama", "fingerprint": fingerprint}
        config = json.loads((folder.path / "model" / "config.json").read_text())
        edit_json(folder.path / "model" / "config.json", svd_config={**config["svd_config"], "source": source})
        if weights:
            tensors = load_file(base / "model.safetensors")
            tensors[weights].flatten()[0] += 1
            save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    return build


def scaled(factor, *names, model="llama"):
    """A builder: a model whose weights of these names are multiplied by a factor, nan too."""

    def build(folder):
        directory = dense(folder, model)
        tensors = load_file(directory / "model.safetensors")
        for name in names:
            tensors[name] = tensors[name] * factor
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return build


def adapter(folder):
    dense(folder)
    folder.write("model/adapter_config.json", "{}")


def adapter_alone(folder):
    (folder.path / "model").mkdir()
    folder.write("model/adapter_config.json", "{}")


def larger_vocabulary(folder):
    """Its l is a token that the model does not have."""
    path = dense(folder) / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"]["l"] = 5000
    path.write_text(json.dumps(found))


def eight_bits(dtype):
    """A builder: one weight in another dtype."""

    def build(folder):
        path = dense(folder) / "model.safetensors"
        tensors = load_file(path)
        save_file({**tensors, UP: tensors[UP].to(dtype)}, path, metadata={"format": "pt"})

    return build


def report_with_nan(folder):
    directory = dense(folder, "svd_llama")
    write_report(directory)
    path = directory / "report.json"
    path.write_text(path.read_text().replace("0.125", "NaN"))


GATE, UP, DOWN = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
HEAD = "lm_head.weight"
WITH_BASE = EVALUATE + " --base base"
EVIL = "open('executed', 'w')\nclass Evil:\n    pass\ndef generate(**kwargs):\n    pass\n"
ROPE_5 = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": None, "rope_scaling": None}
TOKENIZER_5 = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": []}

CASES = [
    Case("a Llama or Qwen3 directory", COMPRESS, dense),
    Case("a directory without config.json", COMPRESS, no_config, "model has no config.json", 1),
    Case(
        "weights as a pickle", COMPRESS, pickle, "pytorch_model.bin is a pickle, which can run code when it is read", 1
    ),
    Case("config.json of transformers 5 (rope_parameters)", COMPRESS, edited(**ROPE_5)),
    Case(
        "a config.json whose RoPE differs between transformers 4 and 5",
        EVALUATE,
        edited(rope_theta=1e4, rope_parameters=ROPE_5["rope_parameters"]),
        "rope_theta, which transformers 4 reads, is 10000.0, and rope_parameters.rope_theta, which transformers 5 "
        "reads, 500000.0; remove the wrong one",
        1,
    ),
    Case("a tokenizer saved by transformers 5", COMPRESS, edited(file="tokenizer_config.json", **TOKENIZER_5)),
    Case(
        "a tokenizer of transformers 5 that 4 has no class for",
        EVALUATE,
        edited(file="tokenizer_config.json", **{**TOKENIZER_5, "tokenizer_class": "MistralCommonBackend"}),
        "was saved by transformers 5, and transformers 4",
        1,
    ),
    Case(
        "a tokenizer that is code (auto_map)",
        COMPRESS,
        tokenizer_with_code("Evil"),
        "and no code of a checkpoint is run; put the tokenizer.json of the model there",
        1,
    ),
    Case(
        "code beside a tokenizer that needs none",
        EVALUATE,
        tokenizer_with_code("PreTrainedTokenizerFast"),
        "names code of its own (auto_map), which is not run",
    ),
    Case(
        "a directory with custom_generate/generate.py",
        EVALUATE,
        custom_generate,
        "model brings code of its own (custom_generate/generate.py), which transformers would run: use a copy without",
        1,
    ),
    Case(
        "a tokenizer of another model",
        EVALUATE,
        larger_vocabulary,
        "the tokenizer of model gives id 5000, the model has 259 embeddings; copy the model's own tokenizer",
        1,
    ),
    Case(
        "the same, for a prompt",
        "generate model --prompt lamp",
        larger_vocabulary,
        "the tokenizer of model gives id 5000, the model has 259 embeddings; copy the model's own tokenizer",
        1,
    ),
    Case(
        "weights in float8",
        EVALUATE,
        eight_bits(torch.float8_e4m3fn),
        f"{UP} is stored as F8_E4M3; expected float32",
        1,
    ),
    Case("weights in int8", EVALUATE, eight_bits(torch.int8), f"{UP} is stored as I8; expected float32", 1),
    Case(
        "a LoRA adapter beside the weights",
        EVALUATE,
        adapter,
        "model holds an adapter beside its weights (adapter_config.json), which transformers adds where peft is "
        "installed and nobody does elsewhere; merge it",
        1,
    ),
    Case(
        "a LoRA adapter alone",
        "plan model",
        adapter_alone,
        "model is an adapter of another model (adapter_config.json)",
        1,
    ),
    Case("`--base`: the model it was made from", WITH_BASE, pair()),
    Case(
        "`--base`: another model",
        WITH_BASE,
        pair("model.layers.1.self_attn.q_proj.weight"),
        "base is not the model that model was made from (tiny): 1 of the tensors that were not compressed differ "
        "(model.layers.1.self_attn.q_proj.weight); give the model it was made from",
        1,
    ),
    Case(
        "`--base`: the same weights with another config.json",
        WITH_BASE,
        pair(use_cache=False),
        "base has another fingerprint than the model that model was made from (tiny)",
    ),
    Case("NaN among the weights", COMPRESS, scaled(float("nan"), UP), f"{UP} holds NaN or infinite values", 1),
    Case("NaN among the weights, of which it reads none", "plan model --block 2", scaled(float("nan"), UP)),
    Case(
        "NaN among the weights, of which it reads none", "inspect model", scaled(float("nan"), HEAD, model="svd_llama")
    ),
    Case("NaN among the weights", EVALUATE, scaled(float("nan"), UP), f"non-finite values in {UP}", 1),
    Case(
        "weights so large that the hidden states overflow",
        COMPRESS,
        scaled(1e25, GATE, UP),
        "the calibration text gives NaN or infinite values in float32 (hidden at layer 2): weights of the model are "
        "damaged or too large",
        1,
    ),
    Case(
        "weights so large that the logits overflow",
        EVALUATE,
        scaled(1e25, GATE, UP),
        "the logits of model are NaN or infinite at 32 of 32 tokens in float32: its weights are damaged or too large",
        1,
    ),
    Case(
        "weights so large that the sampling has no probabilities",
        "generate --model model --prompt a --temperature 1",
        scaled(1e25, GATE, UP),
        "the logits of model are NaN or infinite at 1 of 1 tokens in float32",
        1,
    ),
    Case(
        "logits so large that the perplexity is no number",
        EVALUATE,
        scaled(1e6, HEAD),
        "nats a token; the perplexity, e to that power, is no number",
        1,
    ),
    Case(
        "a config.json with NaN",
        EVALUATE,
        edited(rms_norm_eps=float("nan")),
        "config.json is not valid JSON (it holds NaN, which is no JSON)",
        1,
    ),
    Case(
        "a report.json with NaN",
        "inspect model",
        report_with_nan,
        "report.json cannot be read (it holds NaN, which is no JSON)",
        1,
    ),
    Case(
        "an MLP of zeros in one layer",
        COMPRESS,
        scaled(0.0, GATE, UP, DOWN),
        "zeros or repeated neurons limit the rank of 1.down_proj (rank 0), 1.gate_proj (rank 0), 1.up_proj (rank 0); "
        "these get no larger one, or stay dense",
    ),
    Case(
        "a down projection of zeros",
        COMPRESS + " --dry-run",
        scaled(0.0, DOWN),
        "zeros or repeated neurons limit the rank of 1.down_proj (rank 0)",
    ),
]
