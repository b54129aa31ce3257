"""Subscripts of a view.

They are basic (integers, slices, `ds`), advanced (`arange`, `mgrid`), masks of an operand, or index tiles for indirect
DMA.
"""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import Axis, Condition, Expr, as_expr
from nxdi_svd_plugin.simulator.program.program import View


class DynamicSlice:
    """`nl.ds(start, size)`: `size` elements from an affine start."""

    def __init__(self, start: Any, size: int) -> None:
        self.start, self.size = start, size


def subscript(view: View, key: Any) -> View:
    """`view[key]` as another view of the same storage."""
    if view.base.block.closed:
        fail(
            f"{view!r} was created inside a loop or block that has ended (err_local_variable_used_out_of_scope); "
            "create it before the loop"
        )
    if isinstance(key, Condition):
        masked = view.like(view.shape, view.strides)
        masked.mask = key
        return masked
    keys = _expand(view, key if isinstance(key, tuple) else (key,))
    if view.checks and not all(_is_all(k) for k in keys):
        fail("subscript of a tensor view that is not provably in bounds")
    if any(isinstance(k, View) or (isinstance(k, Expr) and k.ndim) for k in keys):
        return _advanced(view, keys)
    return _basic(view, keys)


def _expand(view: View, keys: tuple[Any, ...]) -> list[Any]:
    if any(k is None for k in keys):
        fail("None in a tensor subscript; use .expand_dims")
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys = (*keys[:at], *[slice(None)] * (view.ndim - len(keys) + 1), *keys[at + 1 :])
    if len(keys) > view.ndim:
        fail(f"{len(keys)} subscripts for {view!r}")
    advanced = any(isinstance(k, View) or (isinstance(k, Expr) and k.ndim) for k in keys)
    if advanced and (len(keys) < view.ndim or any(isinstance(k, (slice, DynamicSlice)) for k in keys)):
        fail(
            "basic and advanced indexing are mixed "
            "(err_unsupported_mixing_basic_advanced_tensor_indexing): with arange/mgrid, index "
            "every dimension by arange, mgrid or integers"
        )
    return [*keys, *[slice(None)] * (view.ndim - len(keys))]


def _is_all(key: Any) -> bool:
    """True for `:`."""
    return isinstance(key, slice) and key.start is None and key.stop is None and key.step is None


def _span(key: Any, size: int) -> tuple[Expr, int, int] | None:
    """(start, length, step) of a slice; None for a scalar."""
    if isinstance(key, DynamicSlice):
        return as_expr(key.start), int(key.size), 1
    if not isinstance(key, slice):
        return None
    if _is_all(key):
        return Expr(0), size, 1
    start = as_expr(0 if key.start is None else key.start)
    stop = as_expr(size if key.stop is None else key.stop)
    step = 1 if key.step is None else int(key.step)
    if start is NotImplemented or stop is NotImplemented or step < 1:
        fail(f"not a valid slice: {key}")
    if any(not end.terms and end.const < 0 for end in (start, stop)):
        fail(f"a negative end in {key}: count from the front")
    length = stop - start
    if length.terms:
        fail("the size of a slice must be a compile-time constant; use nl.ds(start, size)")
    count = -(-length.const // step)
    if count <= 0:
        fail(f"empty slice {key} of a dimension of {size}")
    return start, count, step


class _Builder:
    """Collects offset, axes and bounds checks of a subscript."""

    def __init__(self, view: View) -> None:
        self.view, self.offset, self.start = view, view.offset, view.start
        self.checks: list[tuple[Expr, int]] = []

    def index(self, dim: int, expr: Expr) -> None:
        """Index a dimension by an expression of loop and tile indices."""
        self._move(dim, expr.without_axes())
        low, high = expr.bounds()
        if low < 0 or high >= self.view.shape[dim]:
            self.checks.append((expr, self.view.shape[dim]))

    def span(self, dim: int, start: Expr, axis: Axis, step: int) -> None:
        """Walk a dimension along a tile axis."""
        self._move(dim, start)
        low, high = start.bounds()
        if low < 0 or high + step * (axis.size - 1) >= self.view.shape[dim]:
            self.checks.append((start + Expr(0, {axis: step} if axis.size > 1 else {}), self.view.shape[dim]))

    def _move(self, dim: int, start: Expr) -> None:
        view = self.view
        if start.terms or start.const:
            self.offset = self.offset + start * view.strides[dim]
            if view.base.on_chip and dim == view.blocks:
                self.start = self.start + start

    def build(self, shape: list[int], strides: list[int], blocks: int, indirect: Any = None) -> View:
        view = self.view
        made = view.like(tuple(shape), tuple(strides))
        made.offset, made.start, made.blocks, made.indirect = self.offset, self.start, blocks, indirect
        made.checks = (*view.checks, *self.checks)
        made.mask = None
        return made


def _basic(view: View, keys: list[Any]) -> View:
    spans = [_span(key, size) for key, size in zip(keys, view.shape, strict=True)]
    chip, par = view.base.on_chip, view.blocks
    kept = [dim for dim, span in enumerate(spans) if span or (chip and dim == par)]
    padded = chip and kept[-1] == par
    ndim = len(kept) + padded
    builder = _Builder(view)
    shape: list[int] = []
    strides: list[int] = []
    for dim, (key, span) in enumerate(zip(keys, spans, strict=True)):
        if span is None:
            expr = as_expr(key)
            if expr is NotImplemented:
                fail(f"not a valid subscript: {key!r}")
            builder.index(dim, expr)
        else:
            start, count, step = span
            if not _is_all(key):
                builder.span(dim, start, Axis(ndim - 1 - len(shape), count), step)
        if dim in kept:
            shape.append(span[1] if span else 1)
            strides.append(view.strides[dim] * (span[2] if span else 1))
            if chip and dim == par and span and span[2] != 1:
                fail("partitions are contiguous: no step on the partition axis")
    if padded:
        shape.append(1)
        strides.append(0)
    return builder.build(shape, strides, sum(1 for dim in kept if chip and dim < par))


def _advanced(view: View, keys: list[Any]) -> View:
    indirect = [(dim, key) for dim, key in enumerate(keys) if isinstance(key, View)]
    exprs = [Expr(0) if isinstance(key, View) else as_expr(key) for key in keys]
    if any(expr is NotImplemented for expr in exprs):
        fail(f"not a valid subscript: {keys}")
    ndim = max([expr.ndim for expr in exprs] + [key.ndim for _, key in indirect])
    if ndim < 2:
        fail("indexing with a 1-D arange (err_1d_arange_not_supported); write nl.arange(n)[:, None]")
    shape, strides, builder = [1] * ndim, [0] * ndim, _Builder(view)
    for dim, expr in enumerate(exprs):
        for axis in expr.axes():
            at = ndim - 1 - axis.position
            if shape[at] not in (1, axis.size):
                fail(f"index tensors of sizes {shape[at]} and {axis.size} on one axis")
            shape[at] = axis.size
            strides[at] += expr.terms[axis] * view.strides[dim]
            _check_partition_rule(view, dim, at, expr.terms[axis])
        builder.index(dim, expr)
    extra = None
    if indirect:
        if view.base.on_chip or len(indirect) > 1 or indirect[0][1].shape[1:] != (1,) * (indirect[0][1].ndim - 1):
            fail("indirect addressing takes one [P, 1] index tile, on a dimension of an HBM tensor")
        dim, tile = indirect[0]
        if tile.dtype.kind not in "iu":
            fail(f"an index tile holds integers, found {tile.dtype.name}")
        shape[0], extra = tile.shape[0], (tile, view.strides[dim], view.shape[dim])
    return builder.build(shape, strides, 0, extra)


def _check_partition_rule(view: View, dim: int, at: int, coeff: int) -> None:
    if not view.base.on_chip:
        return
    if dim < view.blocks:
        fail("a block dimension takes a loop index or integer, not arange/mgrid")
    if (dim == view.blocks) != (at == 0) or (at == 0 and coeff != 1):
        fail("on chip the first tile axis walks the partitions, one by one, and the other axes the free dimensions")
