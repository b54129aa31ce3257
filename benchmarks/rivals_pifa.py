"""MPIFA (PIFA.py of biomedical-cybernetics/pivoting-factorization): what benchmarks/rivals.py calls.

Runs `profle_svdllm_low_resource`, `reconstruct` and `PivotLinear.from_svd_linear` of the checkout with the settings of
its README: --use_pifa --old_output_factor 0.25 --reconstruct_step 2. All calibration windows serve both passes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

SETTINGS = {"prune": "svd-llm", "use_pifa": True, "old_output_factor": 0.25, "reconstruct_step": 2, "owl": False}
NOT_NEEDED = ("utils.data_utils", "evaluater")  # what PIFA.py imports and the functions do not use


def load(checkout: Path) -> Any:
    """The module PIFA of the checkout, on the CPU."""
    import torch

    for name in NOT_NEEDED:
        sys.modules[name] = ModuleType(name)
    sys.path.insert(0, str(checkout))
    import PIFA  # type: ignore[import-not-found]

    PIFA.dev = torch.device("cpu")
    setattr(torch.Tensor, "cuda", lambda self: self)  # noqa: B010
    return PIFA


def untouched(peer: Any) -> type:
    """Stands in for `local_update` at an attention projection W: its factors are W and the identity."""
    import torch

    class Untouched:
        def __init__(self, layer: Any) -> None:
            self.layer, self.begin_cache, self.pruned = layer, False, False

        def cache_old_input(self, inp: Any, out: Any) -> None:
            pass

        def cache_new_input(self, inp: Any, out: Any) -> None:
            if not self.pruned:  # nothing of this pass is needed
                raise peer.StopForwardPassException

        def do_prune(self) -> None:
            self.pruned = True

        def fasterprune(self) -> tuple:
            return self.layer.weight.data, torch.eye(self.layer.in_features)

    return Untouched


def statistics(task: Any) -> tuple[Any, dict]:
    """The module, which leaves attention as it is, and its Cholesky factors of the inputs' covariances."""
    peer = load(task.checkout)
    update, kept = peer.local_update, untouched(peer)
    peer.local_update = lambda layer, name, **rest: (
        kept(layer) if "self_attn" in name else update(layer, name=name, **rest)
    )
    peer.dataloader = [(ids[None],) for ids in task.samples]
    task.model.seqlen = task.samples.shape[1]
    return peer, peer.profle_svdllm_low_resource(task.model, peer.dataloader, Namespace(**SETTINGS, DEV="cpu"))


def compress(task: Any, shared: tuple[Any, dict]) -> dict:
    """The MLPs of `task.model` as PivotLinear, r (m + n - r) numbers for a projection of m x n."""
    import torch

    (peer, profile), model = shared, task.model
    peer.calculate_mlp_ratio = lambda model, args: 1 - task.ratio
    model.seqlen = task.samples.shape[1]
    attention = {n: m for n, m in model.named_modules() if "self_attn." in n and isinstance(m, torch.nn.Linear)}
    peer.reconstruct(model, peer.dataloader, profile, Namespace(**SETTINGS, DEV="cpu", attn_ratio=0.5))
    for name, module in attention.items():
        model.set_submodule(name, module)
    ranks, growth = pivoted(peer, model)
    settings = {**SETTINGS, "FACTOR": 1, "indices, not counted": sum(ranks)}
    return {"ranks": {"least": min(ranks), "most": max(ranks), "dense": 0}, "growth": growth, "settings": settings}


def pivoted(peer: Any, model: Any) -> tuple[list[int], float]:
    """Every pair becomes a PivotLinear of the same rank; the ranks and the largest coefficient."""
    import torch
    from utils import linear_pivot  # type: ignore[import-not-found]

    linear_pivot.FACTOR = 1  # else ranks are rounded up to 16s, after the budget was computed
    ranks, growth = [], 0.0
    for layer in model.model.layers:
        for name, module in list(layer.mlp.named_children()):
            if isinstance(module, peer.SVDLinear):
                with torch.no_grad():
                    new = linear_pivot.PivotLinear.from_svd_linear(module)
                setattr(layer.mlp, name, new)
                ranks.append(new.BLinear.out_features)
                growth = max(growth, new.ALinear.weight.abs().max().item())
    return ranks, growth
