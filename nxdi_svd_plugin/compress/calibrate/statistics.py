"""What the factorization of one layer's MLP needs to know of the text: named sums over tokens, float64.

The near side of a projection is the hidden dimension H, the far side the intermediate dimension I in g groups
(groups.py; a is their smaller side). With x what gate and up read, z what down reads, d the loss gradient at a
projection's output, and k counting the groups:

    inputs            [H, H]      sum x x^T (Eq. 2)
    outputs           [g, a, a]   sum y_k y_k^T of what group k adds to the output, y_k = W_k z_k; narrow: sum z_k z_k^T
    gate_gradients    [g, a, a]   sum (W_k^T d_k)(W_k^T d_k)^T; narrow: sum d_k d_k^T; up_gradients the same
    down_gradients    [H, H]      sum d d^T
    gate_squares      [I]         sum d^2, up_squares the same, down_squares sum z^2; not where groups are narrow
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nxdi_svd_plugin.compress.calibrate.groups import Groups

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NEAR = {"gate_proj": "inputs", "up_proj": "inputs", "down_proj": "down_gradients"}
FAR = {"gate_proj": "gate_gradients", "up_proj": "up_gradients", "down_proj": "outputs"}
SQUARES = {"gate_proj": "gate_squares", "up_proj": "up_squares", "down_proj": "down_squares"}


def statistics_shapes(groups: Groups, objective: str) -> dict[str, tuple[int, ...]]:
    """What is summed for one layer, by name; objective `input` needs no gradients."""
    near, far = (groups.hidden, groups.hidden), (groups.count, groups.side, groups.side)
    shapes: dict[str, tuple[int, ...]] = {"inputs": near, "outputs": far}
    if objective == "input":
        return shapes
    shapes |= {"gate_gradients": far, "up_gradients": far, "down_gradients": near}
    return shapes if groups.narrow else shapes | dict.fromkeys(SQUARES.values(), (groups.intermediate,))


def kept_names(groups: Groups, objective: str) -> list[str]:
    """The statistics that are needed again after the decomposition, for the factors."""
    gradients = ("gate_gradients", "up_gradients") if groups.narrow else ("down_gradients",)
    return [name for name in statistics_shapes(groups, objective) if name in ("inputs", "outputs", *gradients)]


def parts(groups: Groups, far: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """What the sum of every group takes in: far_k [..., I / g] where groups are narrow, otherwise far_k weight_k.

    Args:
        far: [..., I]. weight: [I, H].
    """
    from nxdi_svd_plugin.compress.calibrate.products import product

    return (far[..., at] if groups.narrow else product(far[..., at], weight[at]) for at in groups.slices())


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

    def _mean(self, name: str, group: int | None = None) -> Tensor:
        total = self.sums[name] if group is None else self.sums[name][group]
        return total if self.tokens == 1 else total / self.tokens

    def total(self, over: Callable[[Tensor], Tensor]) -> Statistics:
        """Every sum replaced by what `over` makes of it: the sum over all processes."""
        return Statistics({name: over(tensor) for name, tensor in self.sums.items()})

    def add(self, name: str, x: Tensor, group: int | None = None) -> None:
        """Add x^T x for x [..., n] to a sum, or to that of one group; its products have the precision of x, the sum
        float64. Where the two differ, the sums are whole only after `mirror`."""
        from nxdi_svd_plugin.factorize.panels import add_lower

        tokens, total = x.reshape(-1, x.shape[-1]), self.sums[name]
        total = total if group is None else total[group]
        if x.dtype == total.dtype:
            total.addmm_(tokens.T, tokens)
        else:
            add_lower(total, tokens)

    def mirror(self) -> None:
        """Make the sums symmetric to the last bit, once the last sample is added."""
        from nxdi_svd_plugin.factorize.panels import mirror

        for total in self.sums.values():
            if total.dim() > 1:
                for square in total.reshape(-1, *total.shape[-2:]):
                    mirror(square)

    def add_squares(self, name: str, x: Tensor) -> None:
        """Add the sums of squares of x [..., I] over tokens."""
        self.sums[name].add_(x.reshape(-1, x.shape[-1]).square().sum(0))

    @property
    def inputs(self) -> Tensor:
        """x x^T of what gate and up read [H, H]."""
        return self._mean("inputs")

    def near(self, projection: str) -> Tensor:
        """Covariance of the projection's near side [H, H]: its inputs (gate, up) or its output gradients (down)."""
        return self._mean(NEAR[projection])

    def far(self, projection: str, group: int) -> Tensor:
        """Covariance of a group's far side [a, a]: between two weights, W far W^T (gate, up) or W^T far W (down), or
        where groups are narrow as it is."""
        return self._mean(FAR[projection], group)

    def far_trace(self, projection: str, neurons: slice) -> float:
        """Mean diagonal of the covariance of the far side of these neurons, of groups that are not narrow."""
        return float(self._mean(SQUARES[projection])[neurons].mean())
