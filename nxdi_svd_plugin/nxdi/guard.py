"""Stock NxDI classes refuse a compressed checkpoint: they would serve it with random MLPs and no error.

NxDI skips parameters that have no tensor. The guard wraps `NeuronApplicationBase.get_state_dict`, which every path
reads the checkpoint with; a checkpoint without factors passes through it untouched.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.import_hook import after_import
from nxdi_svd_plugin.stored.projection import PROJECTIONS, TENSORS

MODULE = "neuronx_distributed_inference.models.application_base"
MARK = "_nxdi_svd_guarded"
FACTORS = tuple(f".mlp.{name}.{tensor}" for name in PROJECTIONS for tensor in TENSORS)


def install() -> None:
    """Guard NxDI's application classes, now or when NxDI is imported. May be called again."""
    after_import(MODULE, guard)


def refuse_factors(state_dict: Iterable[str], reason: str) -> None:
    """Raises NxdiError if there are factors among the tensors' names; `reason` says why they cannot be used."""
    if any(key.endswith(FACTORS) for key in state_dict):
        raise NxdiError(
            f"the checkpoint is SVD-compressed, but {reason}: NxDI would run it with random MLPs. Use the classes of "
            "nxdi_svd_plugin.nxdi and their configs with mlp_impl='svd_fused' or 'svd'"
        )


def guard(module: ModuleType) -> None:
    """Wrap `get_state_dict` of the module's NeuronApplicationBase."""
    base = module.NeuronApplicationBase
    if MARK in vars(base):
        return
    original = base.get_state_dict.__func__

    def get_state_dict(cls: Any, model_name_or_path: str, config: Any) -> Any:
        state_dict = original(cls, model_name_or_path, config)
        if not getattr(cls, "reads_factors", False):
            refuse_factors(state_dict, f"{cls.__name__} is NxDI's own class")
        return state_dict

    base.get_state_dict = classmethod(get_state_dict)
    setattr(base, MARK, True)
