"""Element-wise instructions on tiles and scalars, with broadcasting and type promotion, and copies."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, bool_, float32, is_float, promote, scalar_dtype
from nxdi_svd_plugin.simulator.program.emit import as_is, chosen_engine, forward, instruction, result
from nxdi_svd_plugin.simulator.program.functions import BINARY, BITVEC, COMPARISONS, as_math
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Axes, View
from nxdi_svd_plugin.simulator.program.tracer import tracer

LINEAR = {"add", "subtract", "multiply"}
"""Operators against a scalar or a [P, 1] vector that the Scalar Engine does as scale or bias of an activation."""


def inplace(target: View, other: Any, op: str) -> None:
    """`target op= other`; an addition of a matmul result in PSUM is the tensor engine's own accumulation."""
    if isinstance(other, View) and op == "add" and target.buffer == "psum" and forward(other, target, accumulate=True):
        return
    binary(op, target, other, dtype=target.dtype, into=target)


def pad(view: View, ndim: int) -> View:
    """Give a [P, 1] vector as many axes as the tile it broadcasts against."""
    if view.ndim == ndim:
        return view
    if view.ndim < ndim and all(n == 1 for n in view.shape[1:]):
        return view.like((view.shape[0], *[1] * (ndim - 1)), (view.strides[0], *[0] * (ndim - 1)))
    fail(f"operands of {view.ndim} and {ndim} axes")


def broadcast_axes(view: View, space: tuple[int, ...]) -> Axes:
    """Instruction axis of each view axis; None where the view is broadcast."""
    return tuple(axis if size == space[axis] else None for axis, size in enumerate(view.shape))


def column(value: Any, api: str, name: str, data: View, dtypes: tuple[Any, ...]) -> View:
    """A [P, 1] operand of a tile, with as many axes as the tile; of one of the data types, if any are given."""
    view = need(value, api, name, "sbuf", "psum")
    if view.shape[0] != data.shape[0] or prod(view.shape[1:]) != 1:
        fail(f"{api}: {name} must be one element per partition, [{data.shape[0]}, 1], found {list(view.shape)}")
    if dtypes and view.dtype not in dtypes:
        fail(f"{api}: {name} must be {' or '.join(map(str, dtypes))}, found {view.dtype}")
    return pad(view, data.ndim)


def partition_broadcast(view: View, partitions: int) -> View:
    """Copy one partition to many: a matmul by ones on the tensor engine."""
    space = (partitions, *view.shape[1:])
    axes = (None, *range(1, view.ndim))
    return result(
        "partition_broadcast",
        "pe",
        space,
        [(view, axes)],
        tuple(range(view.ndim)),
        lambda x: np.broadcast_to(x, (partitions, *x.shape[1:])),
        view.dtype,
    )


def broadcast(view: View, shape: tuple[int, ...]) -> View:
    """`broadcast_to`: over partitions by the tensor engine, over free axes by stride 0."""
    need(view, "broadcast_to", "src", "sbuf", "psum")
    view = pad(view, len(shape))
    if any(n not in (1, m) for n, m in zip(view.shape, shape, strict=True)):
        fail(f"cannot broadcast {list(view.shape)} to {list(shape)}")
    if view.shape[0] != shape[0]:
        view = partition_broadcast(view, shape[0])
    strides = tuple(s if n == m else 0 for n, m, s in zip(view.shape, shape, view.strides, strict=True))
    return view.like(shape, strides)


def binary(
    op: str,
    left: Any,
    right: Any,
    dtype: Any = None,
    mask: Any = None,
    engine: str = "",
    into: View | None = None,
    broadcast_partitions: bool = True,
    api: str = "",
) -> View:
    """Element-wise `left op right` of tiles and scalars; at most one tile in PSUM."""
    api = api or op
    views = [
        need(v, api, f"operand {i + 1}", "sbuf", "psum") for i, v in enumerate((left, right)) if isinstance(v, View)
    ]
    if not views:
        fail(f"{api}: no operand is a tensor")
    if len(views) == 2 and all(v.buffer == "psum" for v in views):
        if tracer().strict:
            fail(f"{api}: two PSUM operands; the Vector Engine reads at most one from PSUM")
        views[1] = in_sbuf(views[1], api, "operand 2")
    ndim = max(v.ndim for v in views)
    views = [pad(v, ndim) for v in views]
    space = tuple(max(v.shape[axis] for v in views) for axis in range(ndim))
    if into is not None and space != into.shape:
        fail(f"{api}: {list(into.shape)} changed in place by a tile of {list(space)}")
    for i, v in enumerate(views):
        if any(n not in (1, m) for n, m in zip(v.shape, space, strict=True)):
            fail(f"{api}: shapes {[list(x.shape) for x in views]} do not broadcast")
        if v.shape[0] != space[0]:
            if not broadcast_partitions:
                fail(
                    f"{api}: operators do not broadcast over partitions ({[list(x.shape) for x in views]}); use nl.{op}"
                )
            views[i] = partition_broadcast(v, space[0])
    kinds = [v.dtype if isinstance(v, View) else scalar_dtype(v) for v in (left, right)]
    out = as_dtype(dtype) if dtype is not None else _result_dtype(op, kinds)
    compute = binary_compute(op, [left, right], kinds, api)
    axes = tuple(range(ndim))
    reads = [(v, broadcast_axes(v, space)) for v in views]
    # one tile against scalars or [P, 1] vectors is a tensor_scalar instruction
    vectors = [v for v in views if prod(v.shape[1:]) == 1]
    kind = "tensor_scalar" if len(views) == 1 or (len(vectors) == 1 and prod(space[1:]) > 1) else "tensor_tensor"
    if not engine:
        engine = chosen_engine(*views) if kind == "tensor_scalar" and op in LINEAR else "vector"
    if into is not None:
        instruction(kind, engine, space, reads, (into, axes), compute, out, mask, alu=op, inplace=True)
        return into
    return result(kind, engine, space, reads, axes, compute, out, mask=mask, alu=op)


def _result_dtype(op: str, kinds: list[np.dtype[Any]]) -> np.dtype[Any]:
    """A comparison gives bool; a quotient of integers fp32, which AWS's resize_nearest relies on (nki-samples)."""
    if op in COMPARISONS or (op in BITVEC and all(kind == bool_ for kind in kinds)):
        return bool_
    made = promote(*kinds)
    return float32 if op == "divide" and not is_float(made) else made


def binary_compute(op: str, operands: list[Any], kinds: list[np.dtype[Any]], api: str) -> Callable[..., Array]:
    """The function of the tile operands: fp32; integers exactly in add, subtract, multiply; bit patterns in bitvec."""
    integers = not any(is_float(k) for k in kinds)
    if op in BITVEC and not integers:
        fail(f"{api}: bit operators take integer tiles, found {' and '.join(map(str, kinds))}")
    exact = integers and op in {"add", "subtract", "multiply", *COMPARISONS}
    cast = (lambda x: x) if op in BITVEC else (lambda x: np.asarray(x, dtype=np.int64)) if exact else as_math
    function = BINARY[op]
    fixed = [None if isinstance(v, View) else cast(np.asarray(v)) for v in operands]

    def compute(*tiles: Array) -> Array:
        rest = iter(tiles)
        values = [cast(next(rest)) if constant is None else constant for constant in fixed]
        return np.asarray(function(*values))

    return compute


def inverted(tile: View, dtype: Any = None, mask: Any = None, api: str = "invert") -> View:
    """Bitwise NOT of integers; of a comparison, which is bool, its negation."""
    if tile.dtype == bool_:
        return binary("equal", tile, 0, dtype=dtype, mask=mask, api=api)
    return binary("bitwise_xor", tile, -1, dtype=dtype or tile.dtype, mask=mask, api=api)


def copy(src: View, dtype: np.dtype[Any] | None = None, mask: Any = None, engine: str = "", api: str = "copy") -> View:
    """A copy, cast to `dtype`, in SBUF unless it is assigned to a PSUM tile; by the engine that the compiler picks."""
    need(src, api, "src", "sbuf", "psum")
    axes = tuple(range(src.ndim))
    return result(
        "copy", engine or chosen_engine(src), src.shape, [(src, axes)], axes, as_is, dtype or src.dtype, mask=mask
    )


def in_sbuf(value: Any, api: str, name: str) -> View:
    """An operand that the API wants in SBUF.

    AWS's attention passes tiles in PSUM straight on: other people's kernels get the copy that the compiler has to make
    of it, and a warning.
    """
    current = tracer()
    if isinstance(value, View) and value.buffer == "psum" and not current.strict:
        current.warnings.append(f"{api}: operand '{name}' is in PSUM; copied to SBUF")
        return copy(value, api=api)
    return need(value, api, name, "sbuf")
