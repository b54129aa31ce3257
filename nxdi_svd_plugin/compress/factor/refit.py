"""A layer's down projection fitted again to the model that runs: behind layers that are compressed.

Of a low-rank W' = near far only near changes, so form, ranks, pivots and order stay as they are; a dense down in a
layer that dropped neurons changes as a whole (near is the weight, far the identity). Over the calibration tokens

    |z W' - t|^2 / n + damping m |W' - W'_0|^2,   t = o_d - h

is least, where h is the hidden state that the MLP is added to and z what down reads, both behind the compressed layers
and gate and up of this one, o_d the dense model's hidden state after the layer, W'_0 what W' was, m the mean square of
z and damping RIDGE times the recipe's: down makes up for what it can of everything before it in the residual stream.

    near^T = near_0^T + (E[p p^T] + damping m far far^T)^-1 E[p (t - p near_0^T)^T],   p = z far^T

Fitting near of gate and up too was tried and left out (docs/accuracy.md). The idea of fitting each layer to what the
compressed ones before it put out: SparseGPT, arXiv:2301.00774, section 3; PIFA, 595a80f of
biomedical-cybernetics/pivoting-factorization, which fits both factors in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.factorize.least_squares import solve
from nxdi_svd_plugin.factorize.panels import add_lower, mirror
from nxdi_svd_plugin.factorize.spectrum import PRECISION
from nxdi_svd_plugin.stored.projection import READS, LowRank

DOWN = "down_proj"
BEFORE, AFTER = "fit_before", "fit_after"
RIDGE = 10.0
"""Ridge of a refit, in units of the recipe's damping: at 1 it fits the calibration text, and other texts may lose."""


def refits(made: LayerFactors, neurons: int) -> bool:
    """Whether down of a layer is fitted again: a low-rank one, and one of fewer than `neurons`."""
    return isinstance(made.mlp[DOWN], LowRank) or made.mlp.width < neurons


def parts(made: LayerFactors, name: str) -> tuple[Tensor, Tensor | None]:
    """near [H, r] and far of a projection; of a dense one its weight [H, w] and None."""
    p, reads = made.mlp[name], READS[name]
    if isinstance(p, LowRank):
        return p.from_disk(reads, {key: made.tensors[f"{name}.{key}"] for key in p.names(reads)})
    weight: Tensor = reads.hidden_first(made.tensors[f"{name}.weight"])
    return weight, None


@dataclass
class Added:
    """Sums over tokens of what near of down reads, p [n, r], and of e = t - y: what is missing from its output.

    read: sum p p^T [r, r]. cross: sum p e^T [r, H]. totals: sums of the squares of e, t and z. first: z of the first
    sample of this process.
    """

    read: Tensor
    cross: Tensor
    totals: Tensor
    first: Tensor | None = None

    @classmethod
    def zero(cls, rank: int, hidden: int, device: torch.device) -> Added:
        """Nothing summed yet."""
        read, cross = (torch.zeros(rank, n, dtype=PRECISION, device=device) for n in (rank, hidden))
        return cls(read, cross, torch.zeros(3, dtype=PRECISION, device=device))

    def add(self, z: Tensor, p: Tensor, y: Tensor, wanted: Tensor) -> None:
        """Add the tokens of a sample."""
        self.first = z if self.first is None else self.first
        missing = wanted - y
        add_lower(self.read, p)
        self.cross += p.T @ missing
        self.totals += torch.stack([t.to(PRECISION).square().sum() for t in (missing, wanted, z)])

    def total(self, over: Callable[[Tensor], Tensor]) -> Added:
        """A symmetric sum, and every one replaced by what `over` makes of it: that over all processes."""
        mirror(self.read)
        return Added(over(self.read), over(self.cross), over(self.totals), self.first)


def fit_down(made: LayerFactors, sums: Added, damping: float) -> LayerFactors:
    """Down with near, or all of it where it is dense, fitted to what is missing in the residual stream.

    Args:
        sums: its `read` is overwritten.

    Raises:
        SvdError: sums that are not finite.
    """
    (near, far), down = parts(made, DOWN), made.mlp[DOWN]
    missing, wanted, neurons = sums.totals.tolist()
    ridge = damping * neurons / made.mlp.width
    gram = far_gram(down, far) if isinstance(down, LowRank) and far is not None else None
    if gram is None:
        sums.read.diagonal().add_(ridge)
    else:
        sums.read.add_(gram, alpha=ridge)
    step = solve(sums.read, sums.cross)
    kept = step if gram is None else gram @ step
    after = missing + float((step * (sums.read @ step - 2 * sums.cross - ridge * kept)).sum())
    return _with_near(made, near.to(PRECISION) + step.T, far, (_share(missing, wanted), _share(after, wanted)))


def far_gram(down: LowRank, far: Tensor) -> Tensor:
    """far far^T [r, r], with the identity at the pivots; groups share no neurons."""
    blocks = [part @ part.T for part in far.to(PRECISION).chunk(down.groups, 1)]
    gram: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    if down.pivots:
        gram.diagonal().add_(1.0)
    return gram


def _with_near(made: LayerFactors, near: Tensor, far: Tensor | None, errors: tuple[float, float]) -> LayerFactors:
    """The same with another near, and the error of the outputs before and after."""
    p, reads = made.mlp[DOWN], READS[DOWN]
    if far is None or not isinstance(p, LowRank):
        changed: dict[str, Tensor] = {"weight": reads.hidden_first(near)}
    else:
        changed = p.to_disk(reads, near, far)
    tensors = {**made.tensors, **{f"{DOWN}.{key}": tensor for key, tensor in changed.items()}}
    numbers = {**made.measured.get(DOWN, {}), BEFORE: errors[0], AFTER: errors[1]}
    return replace(made, tensors=tensors, measured={**made.measured, DOWN: numbers})


def _share(part: float, whole: float) -> float:
    """Of squares, as a share of norms."""
    return float((max(part, 0.0) / whole) ** 0.5) if whole > 0 else 0.0
