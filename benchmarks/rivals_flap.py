"""FLAP, Wanda-sp and magnitude-sp (lib/prune.py of CASIA-IVA-Lab/FLAP): what benchmarks/rivals.py calls.

Runs `prune_flap` (metric WIFV, its default; structure AL-MM: one ranking of all layers' neurons, biases that restore
the mean), `prune_wanda_sp` and `prune_magnitude_sp` (both uniform over layers) of the checkout.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any


def load(checkout: Path) -> Any:
    """The module lib.prune of the checkout, which leaves attention as it is, on the CPU.

    It takes heads of 128 for granted, so that it is given a small unused layer for each output projection.
    """
    import torch

    sys.modules["lib.data"] = ModuleType("lib.data")
    vars(sys.modules["lib.data"])["get_loaders"] = None
    sys.path.insert(0, str(checkout))
    from lib import prune  # type: ignore[import-not-found]

    every, compress_layer = prune.find_layers, prune.compress

    def find_layers(module: Any, *args: Any, **named: Any) -> dict:  # calls itself
        unused = {} if args or named else {"self_attn.o_proj": torch.nn.Linear(128, 1, bias=False)}
        return {**every(module, *args, **named), **unused}

    def compress_mlp(layer: Any, _: Any, mlp: Any, __: Any, mean: Any, *rest: Any, **named: Any) -> None:
        if mlp is not None:  # the mean was rounded to float16, which the model is there
            compress_layer(layer, None, mlp, None, None if mean is None else mean.float(), *rest, **named)

    prune.find_layers, prune.compress = find_layers, compress_mlp
    setattr(torch.Tensor, "cuda", lambda self: self)  # noqa: B010
    return prune


def prepared(model: Any) -> list:
    """What its own modeling file of 2023 has: biases of down, heads a layer, and layers that make their own angles."""

    def angles(layer: Any, args: tuple, kwargs: dict) -> tuple:
        if "position_embeddings" not in kwargs:
            kwargs["position_embeddings"] = model.model.rotary_emb(args[0], kwargs["position_ids"])
        return args, kwargs

    for layer in model.model.layers:
        layer.self_attn.num_heads = 0  # of these, `ratio` go
    return [layer.register_forward_pre_hook(angles, with_kwargs=True) for layer in model.model.layers]


def statistics(task: Any) -> Any:
    """Nothing but the module: its functions make their statistics themselves."""
    return load(task.checkout)


def compress(task: Any, prune: Any) -> dict:
    """`task.model` with fewer intermediate neurons in its MLPs."""
    import torch

    model = task.model
    loader = [(ids[None],) for ids in task.samples]
    prune.get_loaders = lambda *args, **named: (loader, None)
    model.seqlen, far, near = task.samples.shape[1], model.config.intermediate_size, model.config.hidden_size
    hooks, cpu = prepared(model), torch.device("cpu")
    settings = {"nsamples": len(loader), "pruning_ratio": task.ratio, "seed": 0, "unstr": False}
    if task.method == "flap":
        for layer in model.model.layers:
            layer.mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(near))
        share = task.ratio * 3 * far / (3 * far + 4 * near)  # it counts four square attention projections too
        settings |= {"metrics": "WIFV", "structure": "AL-MM", "remove_heads": 0, "pruning_ratio": share}
        prune.prune_flap(Namespace(**settings), model, None, cpu)
    elif task.method == "wanda-sp":
        with torch.no_grad():
            prune.prune_wanda_sp(Namespace(**settings), model, None, cpu)
    else:
        with torch.no_grad():
            prune.prune_magnitude_sp(Namespace(**settings), model, None, cpu)
    for hook in hooks:
        hook.remove()
    widths = [layer.mlp.gate_proj.weight.shape[0] for layer in model.model.layers]
    return {
        "ranks": {"least": 0, "most": 0, "dense": 3 * len(widths)},
        "widths": {"least": min(widths), "most": max(widths), "mean": sum(widths) / len(widths)},
        "growth": 0.0,
        "settings": settings,
    }
