"""LEMS and KFAC-SVD (lems-svd/lems): what benchmarks/rivals.py calls; needs pulp and optuna.

Runs `KFAC_SVDFactorization` and `LEMSSearch` of the checkout with the settings of its preset kfac_lems, except that its
solver is the free one that it offers (cbc; Gurobi needs a licence). Statistics and search see the model in bfloat16, as
theirs see it in float16. SEARCHED of the calibration windows serve its search; no other text does.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

SEARCHED = 8  # windows, the least that its measurement takes (it makes eight batches)
OMIT = ("norm", "head", "self_attn")  # the first two are its own
FACTORS = {"fast": True, "truncate": True, "do_post_calibration": "False"}
SEARCH = {
    "sensitivity_loss": "energy2_normal_klscaled",
    "measurements_points": "0.1",
    "halpha": 0.0,
    "hgamma": 5.0,
    "crosslayer_term": "harmonicv2",
    "enforce_rank_multiples_of": 8,
    "solver": "cbc",
}


def load(checkout: Path) -> tuple[Any, Any]:
    """Its modules for factors and for the search, on the CPU: what names a GPU does nothing."""
    import torch

    gurobi = ModuleType("gurobipy")
    for name in ("Model", "GRB", "quicksum"):
        setattr(gurobi, name, None)
    sys.modules["gurobipy"] = gurobi
    sys.path.insert(0, str(checkout))
    without = {
        (torch.cuda, "current_device"): lambda: torch.device("cpu"),
        (torch.cuda, "device"): lambda device: contextlib.nullcontext(),
        (torch.Tensor, "pin_memory"): lambda self: self,
    }
    for (owner, name), function in without.items():
        setattr(owner, name, function)
    from compression.factorization import kfac_svd  # type: ignore[import-not-found]
    from compression.search import lems  # type: ignore[import-not-found]

    every = lems._find_decoder_layers
    lems._find_decoder_layers = lambda model: ([layer.mlp for layer in every(model)[0]], "mlp")  # three a layer
    return kfac_svd, lems


def rounded(model: Any) -> Any:
    """Parameters in bfloat16."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def uniform(model: Any, ratio: float) -> dict[str, int]:
    """The rank of every MLP projection of m x n at which a pair has (1 - ratio) m n numbers."""
    import torch

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not any(omit in name for omit in OMIT):
            rows, columns = module.weight.shape
            found[name] = int((1 - ratio) * rows * columns / (rows + columns))
    return found


def factors(kfac_svd: Any, task: Any) -> Any:
    """Its factors of all projections, made once for all ratios."""
    method = kfac_svd.KFAC_SVDFactorization(
        vision=False, calib_dataset_name="builtin", use_cache=True, workspace_dir=str(task.work), **FACTORS
    )
    batches = [{"input_ids": ids[None]} for ids in task.samples]
    method.factorization_computations(task.model, list(OMIT), batches, None)
    for parameter in task.model.parameters():
        parameter.requires_grad = False
    return method


def measured_by_layer(lems: Any, work: Path) -> type:
    """`LEMSSearch`, which leaves what it measured of a layer in `work`, so that it can go on where it was ended."""

    class Search(lems.LEMSSearch):
        def _compute_layer_sensitivity(self, model: Any, spec_tensor: Any = None) -> tuple[dict, dict]:
            layers, omit = len(model.model.layers), list(OMIT)
            sensitivity: dict = {}
            sizes: dict = {}
            for i in range(layers):
                path = work / f"layer-{i}.pkl"
                if not path.exists():
                    self.name_omit = [*omit, *(f"layers.{j}." for j in range(layers) if j != i)]
                    path.write_bytes(pickle.dumps(super()._compute_layer_sensitivity(model, spec_tensor)))
                found, size = pickle.loads(path.read_bytes())
                sensitivity |= found
                sizes |= size
            self.name_omit = omit
            return sensitivity, sizes

        def _precompute_original_outputs(self, model: Any) -> Any:
            if not hasattr(self, "pinned_original_outputs"):
                super()._precompute_original_outputs(model)
            return self.pinned_original_outputs

    return Search


def statistics(task: Any) -> tuple[Any, Any]:
    """Its factors, and the module of its search."""
    kfac_svd, lems = load(task.checkout)
    task.work.mkdir(parents=True, exist_ok=True)
    rounded(task.model)
    return factors(kfac_svd, task), lems


def compress(task: Any, shared: tuple[Any, Any]) -> dict:
    """The MLP projections of `task.model` as pairs or, where its search says so, dense."""
    (method, lems), model = shared, rounded(task.model)
    ranks: dict[str, Any] = uniform(model, task.ratio)
    if task.method == "lems":
        windows = [{"input_ids": ids[None]} for ids in task.samples[:SEARCHED]]
        search = measured_by_layer(lems, task.work)(
            eval_data=windows, mixup_fn=None, name_omit=list(OMIT), ratio_target=1 - task.ratio, **SEARCH
        )
        search.initialize_search(method, model)
        ranks = search.search(model)
    method.factorize_model(model, ranks, list(OMIT), verbose=False)
    kept = []
    for module in model.modules():
        if hasattr(module, "dummy_weight"):  # a number that nothing reads
            del module.dummy_weight, module.weight
            kept.append(module.mod_a.out_features)
    return {
        "ranks": {"least": min(kept), "most": max(kept), "dense": len(ranks) - len(kept)},
        "growth": 0.0,
        "settings": {**FACTORS, **(SEARCH | {"search_samples": SEARCHED} if task.method == "lems" else {})},
    }
