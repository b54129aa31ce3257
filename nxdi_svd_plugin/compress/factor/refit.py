"""A layer's factors fitted again to the model that runs: behind layers that are compressed.

Of a low-rank projection W' = near far only near changes, so form, ranks, pivots and order stay as they are; a dense
down in a layer that dropped neurons changes as a whole (near is the weight, far the identity). With x what gate and up
read behind the compressed layers and x_d what they read in the dense model, h the hidden state that the MLP is added to
and o_d the dense model's after the layer, over the calibration tokens

    gate, up:  |x near far - x_d W'_0|^2 / n + damping m |W' - W'_0|^2        down:  |z W' - t|^2 / n + ..., t = o_d - h

where z is what down reads behind the new gate and up, W'_0 is W' before, m the mean square of x or z, and damping RIDGE
times the recipe's. Gate and up keep the error that they were given, which was weighed by the loss gradient, and undo
what the drift of their inputs adds; down makes up, as well as it can, for everything before it in the residual stream.
The solutions are

    gate, up:  near = near_0 - (E[x x^T] + damping m)^-1 E[x (x - x_d)^T] near_0
    down:      near^T = near_0^T + (E[p p^T] + damping m far far^T)^-1 E[p (t - p near_0^T)^T],   p = z far^T

The idea of fitting each layer to what the compressed ones before it put out: SparseGPT, arXiv:2301.00774, section 3;
PIFA, biomedical-cybernetics/pivoting-factorization 595a80f, which fits both factors in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.least_squares import solve
from nxdi_svd_plugin.factorize.panels import add_lower, mirror
from nxdi_svd_plugin.factorize.spectrum import PRECISION
from nxdi_svd_plugin.stored.projection import READS, LowRank, Side

DOWN = "down_proj"
BEFORE, AFTER = "fit_before", "fit_after"
RIDGE = 10.0
"""Ridge of a refit, in units of the recipe's damping: at 1 it fits the calibration text, and other texts may lose."""


def refits(made: LayerFactors, neurons: int) -> list[str]:
    """The projections of a layer that are fitted again: the low-rank ones, and a down of fewer than `neurons`."""
    narrower = made.mlp.width < neurons
    return [name for name, p in made.mlp.items() if isinstance(p, LowRank) or (narrower and name == DOWN)]


def parts(made: LayerFactors, name: str) -> tuple[Tensor, Tensor | None]:
    """near [H, r] and far of a projection; of a dense one its weight [H, w] and None."""
    p, reads = made.mlp[name], READS[name]
    if isinstance(p, LowRank):
        return p.from_disk(reads, {key: made.tensors[f"{name}.{key}"] for key in p.names(reads)})
    weight: Tensor = reads.hidden_first(made.tensors[f"{name}.weight"])
    return weight, None


def with_near(made: LayerFactors, name: str, near: Tensor, before: float, after: float) -> LayerFactors:
    """The same with another near, and the error of the outputs before and after."""
    p, reads, far = made.mlp[name], READS[name], parts(made, name)[1]
    if far is None or not isinstance(p, LowRank):
        changed: dict[str, Tensor] = {"weight": reads.hidden_first(near)}
    else:
        changed = p.to_disk(reads, near, far)
    tensors = {**made.tensors, **{f"{name}.{key}": tensor for key, tensor in changed.items()}}
    numbers = {**made.measured.get(name, {}), BEFORE: before, AFTER: after}
    return replace(made, tensors=tensors, measured={**made.measured, name: numbers})


def far_gram(made: LayerFactors, name: str) -> Tensor:
    """far far^T [r, r] of a low-rank projection, with the identity at the pivots; groups share no neurons."""
    p, far = made.mlp[name], parts(made, name)[1]
    if far is None or not isinstance(p, LowRank):
        raise SvdError(f"{name} is dense and has no far")
    blocks = [part @ part.T for part in far.to(PRECISION).chunk(p.groups, 1)]
    gram: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    if p.pivots:
        gram.diagonal().add_(1.0)
    return gram


@dataclass
class Drift:
    """Sums over tokens of x [n, H] and of d = x - x_d: what gate and up read, and how far it moved. [H, H] each.

    read: sum x x^T. cross: sum x d^T. moved: sum d d^T.
    """

    read: Tensor
    cross: Tensor
    moved: Tensor

    @classmethod
    def zero(cls, hidden: int, device: torch.device) -> Drift:
        """Nothing summed yet."""
        return cls(*(torch.zeros(hidden, hidden, dtype=PRECISION, device=device) for _ in range(3)))

    def add(self, x: Tensor, moved: Tensor) -> None:
        """Add the tokens of a sample; products have its precision, sums are float64."""
        add_lower(self.read, x)
        self.cross += x.T @ moved
        add_lower(self.moved, moved)

    def total(self, over: Callable[[Tensor], Tensor]) -> Drift:
        """Symmetric sums, each replaced by what `over` makes of it: that over all processes."""
        mirror(self.read)
        mirror(self.moved)
        return Drift(over(self.read), over(self.cross), over(self.moved))

    @property
    def dense(self) -> Tensor:
        """sum x_d x_d^T."""
        return self.read - self.cross - self.cross.T + self.moved


def fit_reads(made: LayerFactors, sums: Drift, damping: float) -> LayerFactors:
    """Gate and up, if they are low rank, with near fitted to the inputs behind compressed layers.

    Raises:
        SvdError: sums that are not finite.
    """
    names = [name for name, p in made.mlp.items() if isinstance(p, LowRank) and READS[name] is Side.HIDDEN]
    if not names:
        return made
    nears = {name: parts(made, name)[0].to(PRECISION) for name in names}
    damped = sums.read.clone()
    damped.diagonal().add_(damping * float(damped.diagonal().mean()))
    change = -solve(damped, sums.cross @ torch.cat(list(nears.values()), 1))
    steps = torch.split(change, [near.shape[1] for near in nears.values()], dim=1)
    for name, step in zip(names, steps, strict=True):
        near, weigh = nears[name], far_gram(made, name)
        weighed = near @ weigh
        size, before = _form(near, sums.dense, weighed), _form(near, sums.moved, weighed)
        after = before + _form(step, sums.read, step @ weigh) + 2 * _form(step, sums.cross, weighed)
        made = with_near(made, name, near + step, _share(before, size), _share(after, size))
    return made


def _form(a: Tensor, between: Tensor, b: Tensor) -> float:
    """tr(a^T between b)."""
    return float((a * (between @ b)).sum())


def _share(part: float, whole: float) -> float:
    """Of squares, as a share of norms."""
    return float((max(part, 0.0) / whole) ** 0.5) if whole > 0 else 0.0


@dataclass
class Added:
    """Sums over tokens of what near of down reads, p [n, r], and of e = t - y: what is missing from its output.

    read: sum p p^T [r, r]. cross: sum p e^T [r, H]. totals: sums of the squares of e, t and z.
    """

    read: Tensor
    cross: Tensor
    totals: Tensor

    @classmethod
    def zero(cls, rank: int, hidden: int, device: torch.device) -> Added:
        """Nothing summed yet."""
        read, cross = (torch.zeros(rank, n, dtype=PRECISION, device=device) for n in (rank, hidden))
        return cls(read, cross, torch.zeros(3, dtype=PRECISION, device=device))

    def add(self, z: Tensor, p: Tensor, y: Tensor, wanted: Tensor) -> None:
        """Add the tokens of a sample."""
        missing = wanted - y
        add_lower(self.read, p)
        self.cross += p.T @ missing
        self.totals += torch.stack([t.to(PRECISION).square().sum() for t in (missing, wanted, z)])

    def total(self, over: Callable[[Tensor], Tensor]) -> Added:
        """A symmetric sum, and every one replaced by what `over` makes of it: that over all processes."""
        mirror(self.read)
        return Added(over(self.read), over(self.cross), over(self.totals))


def fit_down(made: LayerFactors, sums: Added, damping: float) -> LayerFactors:
    """Down with near, or all of it where it is dense, fitted to what is missing in the residual stream.

    Args:
        sums: its `read` is overwritten.

    Raises:
        SvdError: sums that are not finite.
    """
    near, missing, wanted, neurons = parts(made, DOWN)[0].to(PRECISION), *sums.totals.tolist()
    ridge = damping * neurons / made.mlp.width
    if isinstance(made.mlp[DOWN], LowRank):
        sums.read.add_(far_gram(made, DOWN), alpha=ridge)
    else:
        sums.read.diagonal().add_(ridge)
    step = solve(sums.read, sums.cross)
    after = missing + float((step * (sums.read @ step - 2 * sums.cross)).sum()) - ridge * _ridged(made, step)
    return with_near(made, DOWN, near + step.T, _share(missing, wanted), _share(after, wanted))


def _ridged(made: LayerFactors, step: Tensor) -> float:
    """|W' - W'_0|^2 of a step [r, H] of down."""
    seen = far_gram(made, DOWN) @ step if isinstance(made.mlp[DOWN], LowRank) else step
    return float((step * seen).sum())
