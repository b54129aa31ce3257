"""Which kernels are tried, in which order and at which shapes: a fault shows at the simplest rung that has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TOKENS = (1, 512)
"""Token generation and prefill."""
MOST = {"mlp": 128}
"""Tokens of one call, at most, where a kernel has such a limit (tiling/decode.py): tried instead of more."""
CASES = "nxdi_svd_plugin.kernels.ladder.cases"


@dataclass(frozen=True)
class Sizes:
    """One core's MLP: hidden H, its neurons I, the rank r, and how many of the neurons are pivots where it has some."""

    hidden: int
    width: int
    rank: int
    own: int


@dataclass(frozen=True)
class Rung:
    """One kernel, once.

    kernel: what is shown. form: "plain" (no factors), "pair" or "interpolative".
    builder: `module:function` that makes a ladder.cases.Case of the rung.
    """

    kernel: str
    form: str
    tokens: int
    sizes: Sizes
    builder: str

    def __str__(self) -> str:
        return f"{self.kernel} {self.form} S={self.tokens}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the same rung."""
        return asdict(self)


def from_json(data: dict[str, Any]) -> Rung:
    """Inverse of `Rung.to_json`."""
    return Rung(**{**data, "sizes": Sizes(**data["sizes"])})


SIZES = {"simulator": Sizes(256, 512, 128, 128), "neuron": Sizes(2048, 4096, 1536, 768)}
"""By device: small enough for a few seconds; one of two cores of Llama-3.2-1B at ratio 0.05 (the paper's layout)."""
KERNELS = (
    ("matmul", "plain"),
    ("project", "pair"),
    ("down", "pair"),
    ("up_gate", "pair"),
    ("mlp", "pair"),
    ("down", "interpolative"),
    ("up_gate", "interpolative"),
    ("mlp", "interpolative"),
)


def ladder(device: str) -> list[Rung]:
    """The rungs for a device, in the order in which they are climbed: all at one token, then all at many."""
    return [
        Rung(kernel, form, min(tokens, MOST.get(kernel, tokens)), SIZES[device], f"{CASES}:{kernel}")
        for tokens in TOKENS
        for kernel, form in KERNELS
    ]
