"""What the factorization of one layer's MLP needs to know of the text: named sums over tokens, float64.

The near side of a projection is the hidden dimension H, the far side the intermediate dimension I (see
factorize/spectrum.py). With x what gate and up read, y what down writes, g the loss gradient at a projection's output:

    inputs            [H, H]  sum x x^T (Eq. 2)
    outputs           [H, H]  sum y y^T
    gate_gradients    [H, H]  sum (W^T g)(W^T g)^T; up_gradients the same
    down_gradients    [H, H]  sum g g^T
    gate_squares      [I]     sum g^2; up_squares the same
    down_squares      [I]     sum z^2, z what down reads
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nxdi_svd_plugin.checkpoint.source import SourceConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NEAR = {"gate_proj": "inputs", "up_proj": "inputs", "down_proj": "down_gradients"}
PROJECTED = {"gate_proj": "gate_gradients", "up_proj": "up_gradients", "down_proj": "outputs"}
SQUARES = {"gate_proj": "gate_squares", "up_proj": "up_squares", "down_proj": "down_squares"}
KEPT = ("inputs", "outputs", "down_gradients")
"""Those that are needed again after the decomposition, for the factors."""


def statistics_shapes(config: SourceConfig, objective: str) -> dict[str, tuple[int, ...]]:
    """What is summed for one layer, by name; objective `input` needs no gradients."""
    square, inner = (config.hidden, config.hidden), (config.intermediate,)
    shapes: dict[str, tuple[int, ...]] = {"inputs": square, "outputs": square}
    if objective == "input":
        return shapes
    gradients = ("gate_gradients", "up_gradients", "down_gradients")
    return shapes | dict.fromkeys(gradients, square) | dict.fromkeys(SQUARES.values(), inner)


@dataclass(frozen=True)
class Statistics:
    """Sums over tokens by the names above; what is read is divided by `tokens`, one matrix at a time."""

    sums: dict[str, Tensor]
    tokens: int = 1

    @classmethod
    def zero(cls, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Statistics:
        """Nothing summed yet."""
        import torch

        return cls({name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()})

    def per_token(self, tokens: int) -> Statistics:
        """Means over tokens instead of sums, of the same memory."""
        return Statistics(self.sums, tokens)

    def _mean(self, name: str) -> Tensor:
        return self.sums[name] if self.tokens == 1 else self.sums[name] / self.tokens

    def total(self, over: Callable[[Tensor], Tensor]) -> Statistics:
        """Every sum replaced by what `over` makes of it: the sum over all processes."""
        return Statistics({name: over(tensor) for name, tensor in self.sums.items()})

    def add(self, name: str, x: Tensor) -> None:
        """Add x^T x for x [..., H]; its products have the precision of x, the sum float64."""
        tokens = x.reshape(-1, x.shape[-1])
        if x.dtype == self.sums[name].dtype:
            self.sums[name].addmm_(tokens.T, tokens)
        else:
            self.sums[name].add_(tokens.T @ tokens)

    def add_squares(self, name: str, x: Tensor) -> None:
        """Add the sums of squares of x [..., I] over tokens."""
        self.sums[name].add_(x.reshape(-1, x.shape[-1]).square().sum(0))

    @property
    def inputs(self) -> Tensor:
        """x x^T of what gate and up read [H, H]."""
        return self._mean("inputs")

    @property
    def outputs(self) -> Tensor:
        """y y^T of what down writes [H, H]."""
        return self._mean("outputs")

    def near(self, projection: str) -> Tensor:
        """Covariance of the projection's near side [H, H]: its inputs (gate, up) or its output gradients (down)."""
        return self._mean(NEAR[projection])

    def projected(self, projection: str) -> Tensor:
        """Covariance of its far side between two weights [H, H]: W far W^T (gate, up) or W^T far W (down)."""
        return self._mean(PROJECTED[projection])

    def far_trace(self, projection: str) -> float:
        """Mean diagonal of the covariance of its far side."""
        return float(self._mean(SQUARES[projection]).mean())
