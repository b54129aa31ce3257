"""Tiny seeded dense and compressed Llama and Qwen3 directories with a byte-level tokenizer, built in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin.stored.layers import ARCHITECTURES, FORMAT_VERSION, MODEL_TYPES
from nxdi_svd_plugin.stored.projection import PROJECTIONS

VOCAB = 259
# Nothing here is a multiple of 128 or of another: hidden 44, intermediate 90, 3 layers, 4 query and 2 key heads of 12.
SHAPE = {
    "hidden_size": 44,
    "intermediate_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    # wide enough that every layer moves the logits; the default 0.02 would hide a wrong MLP behind rounding
    "initializer_range": 0.2,
}
CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant:"


def save_tokenizer(directory: Path) -> None:
    """One token a byte, and <s> </s> <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *symbols])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)


def save_dense(
    directory: Path,
    family: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **config: object,
) -> Path:
    """A dense model of `family` ("llama", "qwen3") in `directory`; Qwen3 ties its embeddings, Llama does not.

    config overrides SHAPE; `shard` is the largest shard, e.g. "60KB" for several files.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[
        family
    ]
    settings = {**SHAPE, "tie_word_embeddings": family == "qwen3", **config}
    torch.manual_seed(seed)
    model = model_class(config_class(**settings)).to(dtype)
    model.save_pretrained(directory, max_shard_size=shard)
    save_tokenizer(directory)
    return directory


def factor(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(u [in, rank], v [rank, out]) of `weight` [out, in] by plain truncated SVD, singular values split evenly."""
    left, s, right = torch.linalg.svd(weight.double().T, full_matrices=False)
    root = s[:rank].sqrt()
    u, v = left[:, :rank] * root, root[:, None] * right[:rank]
    return u.to(weight.dtype).contiguous(), v.to(weight.dtype).contiguous()


def save_factored(
    dense: Path,
    directory: Path,
    rank: int,
    keep_dense: tuple[tuple[int, str], ...] = (),
    widths: tuple[tuple[int, int], ...] = (),
    groups: int = 1,
) -> Path:
    """The compressed form of a dense directory of one file, `rank` everywhere but where kept dense.

    `widths`: (layer, neurons that it keeps, the first ones); all where a layer is not named. `groups`: slices of them
    that are factored on their own, each with its part of the rank. Written here by hand, without the package's writer,
    so that loading is tested against the format alone.
    """
    config, tensors = json.loads((dense / "config.json").read_text()), load_file(dense / "model.safetensors")
    kept = dict.fromkeys(range(config["num_hidden_layers"]), config["intermediate_size"]) | dict(widths)
    layers = {i: {"width": width} | {name: {"form": "dense"} for name in PROJECTIONS} for i, width in kept.items()}
    for i, width in kept.items():
        for name in PROJECTIONS:
            stem = f"model.layers.{i}.mlp.{name}"
            weight = tensors.pop(f"{stem}.weight")
            weight = weight[:, :width] if name == "down_proj" else weight[:width]
            if (i, name) in keep_dense:
                tensors[f"{stem}.weight"] = weight.contiguous()
            else:
                down = name == "down_proj"
                parts = [factor(part, rank // groups) for part in weight.chunk(groups, 1 if down else 0)]
                # near side by side over the rank, far over the neurons; down has both transposed
                for tensor, factors in zip("uv", zip(*parts, strict=True), strict=True):
                    tensors[f"{stem}.{tensor}"] = torch.cat(factors, 0 if down else 1)
                layers[i][name] = {"form": "pair", "rank": rank}
    return save_compressed(dense, directory, tensors, layers, groups)


def save_compressed(dense: Path, directory: Path, tensors: dict, layers: dict, groups: int = 1) -> Path:
    """A copy of the dense directory with these tensors and these layers in its `svd_config`."""
    shutil.copytree(dense, directory)
    config = json.loads((dense / "config.json").read_text())
    layers = {str(i): layer for i, layer in layers.items()}
    config["svd_config"] = {"format_version": FORMAT_VERSION, "groups": groups, "layers": layers}
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    config["model_type"] = MODEL_TYPES[config["model_type"]]
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
