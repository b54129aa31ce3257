"""What each rung computes: inputs, kernel, the truth in float64 and the same chain in plain bfloat16.

A builder makes a Case out of a Rung. Inputs are random bfloat16 of a fixed seed, scaled so that no value is far from 1.
Interpolative factors have their pivots in the first neurons for gate and down, in those that follow for up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nxdi_svd_plugin import kernels
from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels import reference
from nxdi_svd_plugin.kernels.ladder.project import project as project_kernel
from nxdi_svd_plugin.kernels.ladder.rungs import Rung, Sizes
from nxdi_svd_plugin.kernels.packing import pack, to_kernel_order
from nxdi_svd_plugin.stored.runs import Runs

Array = NDArray[Any]
BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class Case:
    """A kernel call and what it must give.

    exact: float64. low: the same with every product rounded to bfloat16, whose error sets the tolerance.
    """

    kernel: Any
    inputs: list[Array]
    exact: Array
    low: Array
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Factors:
    """U and V as they multiply, the two tensors that the kernel reads, and its pivots in tiles."""

    plain: tuple[Array, Array]
    packed: tuple[Array, Array]
    pivots: Runs = ()


def matmul(rung: Rung) -> Case:
    """X·W, dense."""
    rng, sizes = np.random.default_rng(0), rung.sizes
    x, w = normal(rng, rung.tokens, sizes.hidden), normal(rng, sizes.hidden, sizes.width, scale=sizes.hidden)
    return _case(kernels.matmul, [np.ascontiguousarray(x.T), w], _product, x, w)


def project(rung: Rung) -> Case:
    """(X·U)ᵀ, the stage that every fused kernel begins with."""
    rng, sizes = np.random.default_rng(0), rung.sizes
    x, made = normal(rng, rung.tokens, sizes.hidden), _pair(rng, sizes.hidden, sizes.rank, sizes.width, "up_gate")
    u = made.plain[0]
    return _case(project_kernel, [x, made.packed[0]], _product, np.ascontiguousarray(u.T), np.ascontiguousarray(x.T))


def up_gate(rung: Rung) -> Case:
    """SwiGLU of two low-rank projections, [I, S]."""
    rng = np.random.default_rng(0)
    x = normal(rng, rung.tokens, rung.sizes.hidden)
    gate, up = (_upwards(rng, rung, place) for place in range(2))
    plain, packed = [*gate.plain, *up.plain], [*gate.packed, *up.packed]
    if not gate.pivots:
        return _case(kernels.up_gate, [x, *packed], reference.up_gate, x, *plain)
    return _case(kernels.up_gate, [x, *packed], _in_kernel_order, x, *plain, pivots=(gate.pivots, up.pivots))


def down(rung: Rung) -> Case:
    """H·U·V from Hᵀ."""
    rng, sizes = np.random.default_rng(0), rung.sizes
    h_t, made = normal(rng, sizes.width, rung.tokens), _downwards(rng, rung)
    if not made.pivots:
        return _case(kernels.down, [h_t, *made.packed], reference.down, h_t, *made.plain)
    inputs = [to_kernel_order(h_t), *made.packed]
    return _case(kernels.down, inputs, reference.down, h_t, *made.plain, pivots=made.pivots)


def mlp(rung: Rung) -> Case:
    """`up_gate` and `down` at once; the order of the neurons between them is the kernel's own business."""
    rng = np.random.default_rng(0)
    x = normal(rng, rung.tokens, rung.sizes.hidden)
    gate, up, lower = _upwards(rng, rung, 0), _upwards(rng, rung, 1), _downwards(rng, rung)
    packed = [*gate.packed, *up.packed, *lower.packed]
    plain = [*gate.plain, *up.plain, *lower.plain]
    options = {"pivots": (gate.pivots, up.pivots, lower.pivots)} if gate.pivots else {}
    return _case(kernels.mlp, [x, *packed], reference.mlp, x, *plain, **options)


def normal(rng: np.random.Generator, rows: int, columns: int, scale: int = 1) -> Array:
    """Standard normal numbers over the root of `scale`, in bfloat16."""
    return np.asarray(rng.standard_normal((rows, columns)) * scale**-0.5).astype(BF16)


def _case(kernel: Any, inputs: list[Array], chain: Callable[..., Array], *plain: Array, **options: Any) -> Case:
    exact = chain(*(array.astype(np.float64) for array in plain))
    return Case(kernel, inputs, exact, chain(*plain, dtype=BF16), options)


def _product(x: Array, w: Array, dtype: Any = None) -> Array:
    y: Array = x.astype(np.float64) @ w.astype(np.float64)
    return y if dtype is None else y.astype(dtype)


def _in_kernel_order(*arrays: Array, **dtype: Any) -> Array:
    function: Callable[..., Array] = reference.up_gate
    h_t: Array = to_kernel_order(function(*arrays, **dtype))
    return h_t


def _pair(rng: np.random.Generator, inputs: int, rank: int, outputs: int, kernel: str) -> Factors:
    plain = normal(rng, inputs, rank, scale=inputs), normal(rng, rank, outputs, scale=rank)
    return Factors(plain, pack(*plain, kernel))


def _upwards(rng: np.random.Generator, rung: Rung, place: int) -> Factors:
    """Gate (place 0) or up (place 1)."""
    sizes = rung.sizes
    if rung.form == "pair":
        return _pair(rng, sizes.hidden, sizes.rank, sizes.width, "up_gate")
    u = normal(rng, sizes.hidden, sizes.rank, scale=sizes.hidden)
    c = normal(rng, sizes.rank, sizes.width - sizes.own, scale=sizes.rank)
    return Factors((u, _with_identity(c, sizes, place)), pack(u, c, "up_gate", interpolative=True), _runs(sizes, place))


def _downwards(rng: np.random.Generator, rung: Rung) -> Factors:
    sizes = rung.sizes
    if rung.form == "pair":
        return _pair(rng, sizes.width, sizes.rank, sizes.hidden, "down")
    c = normal(rng, sizes.width - sizes.own, sizes.rank, scale=sizes.width)
    v = normal(rng, sizes.rank, sizes.hidden, scale=sizes.rank)
    return Factors((_with_identity(c.T, sizes, 0).T, v), pack(c, v, "down", interpolative=True), _runs(sizes, 0))


def _runs(sizes: Sizes, place: int) -> Runs:
    own = sizes.own // PARTITIONS
    return ((place * own, (place + 1) * own),)


def _with_identity(c: Array, sizes: Sizes, place: int) -> Array:
    """[r, I] out of C [r, I - own]: the pivots are the identity of the first `own` rows."""
    own, first = sizes.own, place * sizes.own
    return np.concatenate([c[:, :first], np.eye(len(c), own, dtype=c.dtype), c[:, first:]], 1)
