"""Choosing elements: `where`, `affine_select`, `max8`, and `iota`, a tile of indices.

Source: `nki/api/nki/isa/__init__.py` (aws-neuron-sdk v2.26.1).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.affine import Condition, Expr
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, float32
from nxdi_svd_plugin.simulator.program.functions import as_math
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Reads, View

MAX8_ELEMENTS = (8, 16384)


def iota(expr: Any, dtype: Any, *, mask: Any = None) -> View:
    """A tile holding the values of an expression of arange/mgrid and loop indices; GpSimd Engine."""
    if not isinstance(expr, Expr) or expr.ndim < 2:
        fail("nki.isa.iota takes an expression of arange or mgrid indices of 2 or more axes")
    shape = [1] * expr.ndim
    for axis in expr.axes():
        shape[expr.ndim - 1 - axis.position] = axis.size
    axes = tuple(range(len(shape)))
    return emit.result(
        "iota", "gpsimd", tuple(shape), [], axes, _as_values, as_dtype(dtype), mask=mask, indices=(expr,)
    )


def _as_values(values: Array) -> Array:
    return values


def affine_select(pred: Any, on_true_tile: Any, on_false_value: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """`on_true_tile` where an affine comparison of indices holds, a constant elsewhere; GpSimd Engine, 150 + N cycles.

    The predicate is one comparison: masks joined by `&` are for `nl.where`.
    """
    api = "nki.isa.affine_select"
    data = elementwise.in_sbuf(on_true_tile, api, "on_true_tile")
    if not isinstance(pred, Condition) or not _single(pred):
        fail(f"{api}: pred is one affine comparison of indices, such as i_p >= i_f; for more use nl.where")
    if pred.ndim != data.ndim:
        fail(f"{api}: pred has {pred.ndim} axes, the tile {data.ndim}")
    constant = np.float32(on_false_value)

    def compute(values: Array, *terms: Array) -> Array:
        return np.where(np.all([term >= 0 for term in terms], axis=0), as_math(values), constant)

    axes, out = tuple(range(data.ndim)), as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result(
        "affine_select", "gpsimd", data.shape, [(data, axes)], axes, compute, out, mask=mask, indices=pred.terms
    )


def _single(pred: Condition) -> bool:
    """One inequality, or the two opposite ones of `==`."""
    if len(pred.terms) == 2:
        both = pred.terms[0] + pred.terms[1]
        return not both.terms and both.const == 0
    return len(pred.terms) == 1


def max8(*, src: Any, mask: Any = None, dtype: Any = None) -> View:
    """The 8 largest elements of every partition in descending order: [P, 8]; Vector Engine, N cycles."""
    api = "nki.isa.max8"
    data = need(src, api, "src", "sbuf", "psum")
    low, high = MAX8_ELEMENTS
    if not low <= prod(data.shape[1:]) <= high:
        fail(f"{api}: {prod(data.shape[1:])} elements per partition, the engine takes {low} to {high}")

    def compute(x: Array) -> Array:
        return np.asarray(-np.sort(-as_math(x).reshape(len(x), -1), axis=1)[:, :8])

    axes, out = tuple(range(data.ndim)), as_dtype(dtype) if dtype is not None else data.dtype
    space = (*data.shape, 8)
    return emit.result("max8", "vector", space, [(data, axes)], (0, data.ndim), compute, out, mask=mask, mask_axes=axes)


def where(condition: Any, x: Any, y: Any, *, dtype: Any = None, mask: Any = None) -> View:
    """Element-wise choice between two tiles or scalars, broadcast to the condition; Vector Engine."""
    api = "nki.language.where"
    condition = need(condition, api, "condition", "sbuf", "psum")
    views = [need(v, api, name, "sbuf", "psum") for name, v in (("x", x), ("y", y)) if isinstance(v, View)]
    if [v.buffer for v in (condition, *views)].count("psum") > 1:
        fail(f"{api}: two PSUM operands; the Vector Engine reads at most one from PSUM")

    def choose(picks: Array, *tiles: Array) -> Array:
        rest = iter(tiles)
        return np.where(picks != 0, *[next(rest) if isinstance(v, View) else np.float32(v) for v in (x, y)])

    axes = tuple(range(condition.ndim))
    out = as_dtype(dtype) if dtype is not None else views[0].dtype if views else float32
    views = [elementwise.broadcast(v, condition.shape) for v in views]
    reads: Reads = [(v, axes) for v in (condition, *views)]
    return emit.result("where", "vector", condition.shape, reads, axes, choose, out, mask=mask)
