"""NxDI models on the CPU and their reference: transformers' own dense class with the weights multiplied out, by groups.

A layer that keeps fewer neurons gets zero weights for the others: SiLU(0) * 0 = 0.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def app_class(family: str, plugin: bool = True):
    """The application class of a family ("llama", "qwen3"), the plugin's or NxDI's own."""
    if plugin:
        from nxdi_svd_plugin.nxdi import NeuronSvdLlamaForCausalLM, NeuronSvdQwen3ForCausalLM

        return {"llama": NeuronSvdLlamaForCausalLM, "qwen3": NeuronSvdQwen3ForCausalLM}[family]
    from neuronx_distributed_inference.models.llama.modeling_llama import NeuronLlamaForCausalLM
    from neuronx_distributed_inference.models.qwen3.modeling_qwen3 import NeuronQwen3ForCausalLM

    return {"llama": NeuronLlamaForCausalLM, "qwen3": NeuronQwen3ForCausalLM}[family]


def make_config(app, directory, **options):
    """The InferenceConfig as NxDI's examples build it."""
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

    defaults = {"tp_degree": 1, "batch_size": 1, "seq_len": 48, "max_context_length": 48, "torch_dtype": torch.float32}
    neuron_config = app.get_neuron_config_cls()(**{**defaults, **options})
    return app.get_config_cls()(neuron_config, load_config=load_pretrained_config(str(directory)))


def load_on_cpu(app, directory, **options):
    """The model, its weights loaded, on the CPU; one a process."""
    model = app(str(directory), make_config(app, directory, **options))
    model.to_cpu()
    return model


def greedy(model, ids: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy decoding through NxDI's forward: (tokens [batch, length + steps], logits [steps, batch, vocab])."""
    model.reset()
    batch, tokens, logits = ids.shape[0], ids, []
    with torch.no_grad():
        for step in range(steps):
            length = tokens.shape[1]
            if step == 0:
                new, positions, seen = tokens, torch.arange(length).repeat(batch, 1), length
            else:
                new, positions, seen = tokens[:, -1:], torch.full((batch, 1), length - 1), length - 1
            mask = torch.ones(batch, seen, dtype=torch.long)
            rows = torch.arange(batch, dtype=torch.int32)
            output = model(input_ids=new, attention_mask=mask, position_ids=positions, seq_ids=rows)
            logits.append(output.logits[:, -1].clone())
            tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], 1)
    return tokens, torch.stack(logits)


def generate(model, directory, ids: torch.Tensor, steps: int) -> torch.Tensor:
    """Greedy tokens through NxDI's HuggingFaceGenerationAdapter."""
    from neuronx_distributed_inference.utils.hf_adapter import HuggingFaceGenerationAdapter
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=False, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=2)
    adapter = HuggingFaceGenerationAdapter(model)
    return adapter.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)


def run_model(family, directory, ids, steps, plugin=True, adapter=False, **options):
    """What a rank does: load, decode greedily, optionally again through generate()."""
    model = load_on_cpu(app_class(family, plugin), directory, **options)
    tokens, logits = greedy(model, ids, steps)
    result = {"tokens": tokens, "logits": logits}
    if adapter:
        result["generated"] = generate(model, directory, ids, steps)
    return result


def dense_reference(directory: Path, family: str):
    """transformers' dense model with the MLP weights that factors stand for, in float64; a dense directory's own."""
    from torch.nn.functional import pad
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[
        family
    ]
    settings = json.loads((Path(directory) / "config.json").read_text())
    stored = settings.pop("svd_config", {"groups": 1, "layers": {}})
    settings["model_type"] = family
    tensors = load_file(Path(directory) / "model.safetensors")
    for i, layer in stored["layers"].items():
        for name in (name for name in PROJECTIONS if layer[name]["form"] != "dense"):
            stem, other = f"model.layers.{i}.mlp.{name}", "c" if layer[name]["form"] == "interpolative" else None
            if name == "down_proj":
                near, far = tensors.pop(f"{stem}.v").T, tensors.pop(f"{stem}.{other or 'u'}").T
            else:
                near, far = tensors.pop(f"{stem}.u"), tensors.pop(f"{stem}.{other or 'v'}")
            weight = multiplied_out(near.double(), far.double(), layer[name], stored["groups"]).to(near.dtype)
            tensors[f"{stem}.weight"] = weight if name == "down_proj" else weight.T
    for key in [key for key in tensors if key.endswith("_proj.weight") and ".mlp." in key]:
        dropped = settings["intermediate_size"] - tensors[key].shape[1 if "down_proj" in key else 0]
        tensors[key] = pad(tensors[key], (0, dropped) if "down_proj" in key else (0, 0, 0, dropped))
    model = model_class(config_class(**settings)).float()
    tied = {"lm_head.weight"} if settings["tie_word_embeddings"] else set()
    found = model.load_state_dict(tensors, strict=False)
    assert set(found.missing_keys) == tied and not found.unexpected_keys, found
    return model.eval()


def multiplied_out(near: torch.Tensor, far: torch.Tensor, described: dict, groups: int) -> torch.Tensor:
    """[H, neurons] of near [H, rank] and far [rank / groups, ...], by groups; a group's pivots are near itself."""
    parts = []
    for a, b in zip(near.chunk(groups, 1), far.chunk(groups, 1), strict=True):
        kept = [n for start, stop in described.get("pivots", []) for n in range(start, stop)]
        part = torch.empty(len(a), len(kept) + b.shape[1], dtype=a.dtype)
        part[:, kept] = a[:, : len(kept)]
        part[:, sorted({*range(part.shape[1])} - {*kept})] = a @ b
        parts.append(part)
    return torch.cat(parts, 1)


def reference_logits(model, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """The reference's logits at the positions of greedy(): [steps, batch, vocab]."""
    with torch.no_grad():
        return model(tokens[:, :-1]).logits[:, prompt - 1 :].transpose(0, 1)
