"""Settings of a recovery run, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from nxdi_svd_plugin.checkpoint.names import LAYERS
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.processor import multiplies_bfloat16

METHODS = ("lora", "full", LAYERS)
PRECISIONS = ("auto", "float32", "bfloat16")
RATES = {"lora": 1e-3, "full": 3e-4, LAYERS: 3e-4}


@dataclass(frozen=True)
class Settings:
    """How to train.

    method: "lora" (Eq. 9); "full", every number of the factors; or "layers", every matrix of the layers, attention too,
    whether or not the compression touched it. lora_rank, lora_alpha: of every adapter.
    steps, batch: optimizer steps and windows a step. micro_batch: windows at once; costs memory, changes nothing else.
    window: tokens a window. learning_rate: 0 for the default of the method. patience: evaluations without a better
    validation perplexity until the run stops. validation_windows: at most so many are measured.
    precision: "bfloat16" is mixed precision (float32 parameters); "auto" is that on a GPU and on a processor that
    multiplies bfloat16, and float32 elsewhere.
    """

    method: str = "lora"
    lora_rank: int = 64
    lora_alpha: float = 64.0
    steps: int = 200
    batch: int = 4
    micro_batch: int = 2
    window: int = 512
    learning_rate: float = 0.0
    evaluate_every: int = 25
    patience: int = 8
    validation_windows: int = 16
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        at_least = {"seed": 0, "learning_rate": 0, "window": 2}
        for item in fields(self):
            value, bound = getattr(self, item.name), at_least.get(item.name, 1)
            if not isinstance(value, str) and not (bound <= value or (item.name == "lora_alpha" and value > 0)):
                raise RecipeError(f"{item.name} is {value}; expected at least {bound}")

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate or RATES[self.method]

    def mixed(self, device: torch.device) -> bool:
        """Whether matrix products run in bfloat16."""
        quick = device.type == "cuda" or (device.type == "cpu" and multiplies_bfloat16())
        return self.precision == "bfloat16" or (self.precision == "auto" and quick)
