"""`neuronxcc.nki.isa`: one function per hardware instruction, with the operand rules of `nki/api/nki/isa/__init__.py`
(v2.26.1).
"""

from __future__ import annotations

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.limits import BN_STATS_FREE
from nxdi_svd_plugin.simulator.place import fail, missing_api
from nxdi_svd_plugin.simulator.program import elementwise, emit, tensor
from nxdi_svd_plugin.simulator.program.dma import dma_copy, dma_engine, dma_transpose
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, bfloat16, float16, float32
from nxdi_svd_plugin.simulator.program.functions import BINARY, REDUCE, UNARY, as_math, op_name
from nxdi_svd_plugin.simulator.program.matmul import nc_matmul, nc_transpose
from nxdi_svd_plugin.simulator.program.program import Reads, tracer
from nxdi_svd_plugin.simulator.program.tensor import View

__all__ = ["dma_copy", "dma_engine", "dma_transpose", "nc_matmul", "nc_transpose"]

tensor_engine, scalar_engine, vector_engine, gpsimd_engine, unknown_engine = (
    "pe",
    "scalar",
    "vector",
    "gpsimd",
    "unknown",
)


class engine(IntEnum):  # noqa: N801
    """Engine names by number."""

    tensor = 1
    vector = 2
    scalar = 3
    gpsimd = 4
    dma = 5
    unknown = 0


class oob_mode(IntEnum):  # noqa: N801
    """What an indirect DMA does with an address outside of the tensor."""

    error = 0
    skip = 1


class dge_mode(IntEnum):  # noqa: N801
    """Who generates DMA descriptors; hardware (hwdge) from NeuronCore-v3 on."""

    unknown = 0
    none = 1
    swdge = 2
    hwdge = 3


class nc_version(IntEnum):  # noqa: N801
    """NeuronCore generations; Trn1 is gen2."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class reduce_cmd(IntEnum):  # noqa: N801
    """State of the scalar engine's reduction registers; only `idle` is simulated."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3


def get_nc_version() -> nc_version:
    """gen2, or gen3 for kernels with platform_target='trn2'."""
    return nc_version.gen3 if tracer().target == "trn2" else nc_version.gen2


def _engine(value: Any, api: str, default: str, *allowed: str) -> str:
    name = (
        {0: "unknown", 1: "pe", 2: "vector", 3: "scalar", 4: "gpsimd"}.get(int(value))
        if isinstance(value, IntEnum)
        else value
    )
    if name in (None, "unknown"):
        return default
    if name not in allowed:
        fail(f"{api} does not run on the {name} engine on NeuronCore-v2; it runs on {', '.join(allowed)}")
    return str(name)


def _vector(value: Any, api: str, name: str, data: View, dtypes: tuple[Any, ...]) -> View:
    """A [P, 1] operand."""
    view = emit.need(value, api, name, "sbuf", "psum")
    if view.shape[0] != data.shape[0] or prod(view.shape[1:]) != 1:
        fail(f"{api}: {name} must be one element per partition, [{data.shape[0]}, 1], found {list(view.shape)}")
    if dtypes and view.dtype not in dtypes:
        fail(f"{api}: {name} must be {' or '.join(map(str, dtypes))}, found {view.dtype}")
    return elementwise.pad(view, data.ndim)


def activation(
    op: Any,
    data: Any,
    *,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: Any = None,
    reduce_cmd: Any = reduce_cmd.idle,
    mask: Any = None,
    dtype: Any = None,
) -> View:
    """`f(data * scale + bias)` on the Scalar Engine, in fp32; max(64, N) cycles."""
    api = "nki.isa.activation"
    if reduce_op is not None or reduce_res is not None:
        missing_api(api, "reduce_op/reduce_res")
    name, data = op_name(op, UNARY, api), emit.need(data, api, "data", "sbuf", "psum")
    reads: Reads = [(data, tuple(range(data.ndim)))]
    if isinstance(scale, tensor.View):
        scale = _vector(scale, api, "scale", data, (float32,))
        reads.append((scale, elementwise.broadcast_axes(scale, data.shape)))
    if bias is not None and not isinstance(bias, tensor.View):
        fail(f"{api}: bias must be a [P, 1] tile of float32, float16 or bfloat16 (err_activation_bias_invalid_type)")
    if bias is not None:
        if name == "reciprocal":
            fail(f"{api}: reciprocal takes no bias on NeuronCore-v2")
        bias = _vector(bias, api, "bias", data, (float32, float16, bfloat16))
        reads.append((bias, elementwise.broadcast_axes(bias, data.shape)))
    function, constant = UNARY[name], None if isinstance(scale, tensor.View) else np.float32(scale)

    def compute(x: Array, *vectors: Array) -> Array:
        rest = list(vectors)
        x = as_math(x) * (as_math(rest.pop(0)) if constant is None else constant)
        return function(x + as_math(rest.pop(0)) if rest else x)

    out = as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result("activation", "scalar", data.shape, reads, reads[0][1], compute, out, mask=mask)


def tensor_tensor(
    data1: Any, data2: Any, op: Any, *, dtype: Any = None, mask: Any = None, engine: Any = unknown_engine
) -> View:
    """Element-wise on the Vector Engine; one operand may be in PSUM; N or 2N cycles."""
    api = "nki.isa.tensor_tensor"
    views = [emit.need(v, api, name, "sbuf", "psum") for name, v in (("data1", data1), ("data2", data2))]
    if views[0].shape[0] != views[1].shape[0]:
        fail(f"{api}: {views[0].shape[0]} and {views[1].shape[0]} partitions (err_num_partition_mismatch)")
    name = op_name(op, BINARY, api)
    where = _engine(engine, api, "gpsimd" if name == "power" else "vector", "vector", "gpsimd")
    if where == "gpsimd" and any(v.buffer == "psum" for v in views):
        fail(f"{api}: the GpSimd Engine cannot access PSUM")
    return elementwise.binary(
        name, views[0], views[1], dtype=dtype, mask=mask, engine=where, broadcast_partitions=False, api=api
    )


def _scalar_operand(value: Any, api: str, name: str, data: View) -> Any:
    return _vector(value, api, name, data, ()) if isinstance(value, tensor.View) else np.float32(value)


def tensor_scalar(
    data: Any,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    *,
    dtype: Any = None,
    mask: Any = None,
    engine: Any = unknown_engine,
) -> View:
    """`(data op0 operand0) op1 operand1`, operands scalars or [P, 1] tiles; max(64, N) cycles on the Vector Engine."""
    api = "nki.isa.tensor_scalar"
    data = emit.need(data, api, "data", "sbuf", "psum")
    steps = [(op_name(op0, {**BINARY, "rsqrt": None}, api), _scalar_operand(operand0, api, "operand0", data), reverse0)]
    if op1 is not None:
        steps.append((op_name(op1, BINARY, api), _scalar_operand(operand1, api, "operand1", data), reverse1))
    where = _engine(engine, api, "gpsimd" if steps[0][0] == "rsqrt" else "vector", "vector", "gpsimd")
    return _chain("tensor_scalar", where, data, steps, [], dtype, mask)


def scalar_tensor_tensor(
    *,
    data: Any,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    dtype: Any = None,
    mask: Any = None,
) -> View:
    """`(data op0 operand0) op1 operand1`, operand0 a scalar or [P, 1], operand1 a tile; 2N cycles on the Vector
    Engine.
    """
    api = "nki.isa.scalar_tensor_tensor"
    data = emit.need(data, api, "data", "sbuf", "psum")
    other = emit.need(operand1, api, "operand1", "sbuf", "psum")
    if data.buffer == other.buffer == "psum":
        fail(f"{api}: two PSUM operands; the Vector Engine reads at most one from PSUM")
    steps = [
        (op_name(op0, BINARY, api), _scalar_operand(operand0, api, "operand0", data), reverse0),
        (op_name(op1, BINARY, api), other, reverse1),
    ]
    return _chain("scalar_tensor_tensor", "vector", data, steps, [], dtype, mask)


def _chain(op: str, where: str, data: View, steps: list[Any], extra: list[Any], dtype: Any, mask: Any) -> View:
    """Apply binary operators one after the other to a tile."""
    reads: Reads = [(data, tuple(range(data.ndim)))]
    for _, operand, _ in steps:
        if isinstance(operand, tensor.View):
            reads.append((operand, elementwise.broadcast_axes(operand, data.shape)))

    def compute(x: Array, *tiles: Array) -> Array:
        rest, x = iter(tiles), as_math(x)
        for name, operand, reverse in steps:
            y = as_math(next(rest)) if isinstance(operand, tensor.View) else operand
            if name == "rsqrt":
                x = 1 / np.sqrt(x + y)
            else:
                x = as_math(np.asarray(BINARY[name](y, x) if reverse else BINARY[name](x, y)))
        return x

    out = as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result(op, where, data.shape, reads, reads[0][1], compute, out, mask=mask, alu=steps[0][0])


def tensor_copy(src: Any, *, mask: Any = None, dtype: Any = None, engine: Any = unknown_engine) -> View:
    """A copy on the Vector Engine (default) or GpSimd (SBUF only); max(64, N) cycles. ScalarE copies by
    `activation(nl.copy)`.
    """
    api = "nki.isa.tensor_copy"
    src = emit.need(src, api, "src", "sbuf", "psum")
    where = _engine(engine, api, "vector", "vector", "gpsimd")
    if where == "gpsimd" and src.buffer == "psum":
        fail(f"{api}: the GpSimd Engine cannot access PSUM")
    return elementwise.copy(src, as_dtype(dtype) if dtype is not None else None, mask, where, api)


def tensor_reduce(
    op: Any, data: Any, axis: Any, *, mask: Any = None, dtype: Any = None, negate: bool = False, keepdims: bool = False
) -> View:
    """Reduction over free axes on the Vector Engine; N cycles (N/2 for bf16 add or maximum)."""
    api = "nki.isa.tensor_reduce"
    data = emit.need(data, api, "data", "sbuf", "psum")
    axes = sorted(a % data.ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if 0 in axes:
        fail(f"{api}: axis 0 is the partition axis; only free axes are reduced")
    name = op_name(op, REDUCE, api)
    function, sign = REDUCE[name], -1 if negate else 1
    kept = [a for a in range(data.ndim) if a not in axes]
    out_axes: list[int | None] = [None if a in axes else a for a in range(data.ndim)] if keepdims else list(kept)
    if len(out_axes) < 2:
        out_axes.append(None)

    def compute(x: Array) -> Array:
        y = as_math(np.asarray(function(as_math(x), axis=tuple(axes), keepdims=True))) * sign
        return y.reshape([1 if a is None else x.shape[a] for a in out_axes])

    out = as_dtype(dtype) if dtype is not None else data.dtype
    reads: Reads = [(data, tuple(range(data.ndim)))]
    return emit.result("tensor_reduce", "vector", data.shape, reads, tuple(out_axes), compute, out, mask=mask, alu=name)


def memset(shape: Any, value: Any, dtype: Any, *, mask: Any = None, engine: Any = unknown_engine) -> View:
    """A new SBUF tile filled with a constant; max(64, N) cycles, half of N for bf16/fp16 zeros."""
    made = tensor.allocate(tuple(shape), dtype, "sbuf")
    where = _engine(engine, "nki.isa.memset", "vector", "vector", "gpsimd")
    instr = emit.fill(made, value, where, mask, split=False)
    made.base.producer = instr
    return made


def iota(expr: Any, dtype: Any, *, mask: Any = None) -> View:
    """A tile holding the values of an arange/mgrid expression; GpSimd Engine."""
    shape = [1] * expr.ndim
    for axis in expr.axes():
        shape[expr.ndim - 1 - axis.position] = axis.size
    if expr.variables():
        fail("nki.isa.iota of a loop index is not simulated; add the loop's offset with tensor_scalar")
    grids = np.indices(shape)
    values = np.asarray(expr.evaluate({axis: grids[expr.ndim - 1 - axis.position] for axis in expr.axes()}))
    axes = tuple(range(len(shape)))
    return emit.result("iota", "gpsimd", tuple(shape), [], axes, lambda: values, as_dtype(dtype), mask=mask)


def reciprocal(data: Any, *, dtype: Any = None, mask: Any = None) -> View:
    """1 / data on the Vector Engine; max(64, 8N) cycles."""
    data = emit.need(data, "nki.isa.reciprocal", "data", "sbuf", "psum")
    axes, out = tuple(range(data.ndim)), as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result(
        "reciprocal", "vector", data.shape, [(data, axes)], axes, lambda x: 1 / as_math(x), out, mask=mask
    )


def bn_stats(data: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """Count, mean and variance*count of the even and of the odd elements: [P, 6]; up to 512 elements per partition."""
    api = "nki.isa.bn_stats"
    data = emit.need(data, api, "data", "sbuf", "psum")
    if prod(data.shape[1:]) > BN_STATS_FREE:
        fail(f"{api}: {prod(data.shape[1:])} elements per partition, at most {BN_STATS_FREE}")

    def compute(x: Array) -> Array:
        parts = [as_math(x).reshape(len(x), -1)[:, half::2] for half in (0, 1)]
        columns = [
            f for p in parts for f in (np.full(len(p), p.shape[1]), _mean(p), _mean(p, spread=True) * p.shape[1])
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    out = as_dtype(dtype) if dtype is not None else data.dtype
    space, axes = (*data.shape, 6), tuple(range(data.ndim))
    return emit.result("bn_stats", "vector", space, [(data, axes)], (0, data.ndim), compute, out, mask=_widen(mask))


def _widen(mask: Any) -> Any:
    """The result axis of 6 statistics comes after the data axes: shift a mask on the data by one axis."""
    if mask is None or isinstance(mask, bool):
        return mask
    from nxdi_svd_plugin.simulator.program.affine import Axis, Condition, Expr

    terms = []
    for term in mask.terms:
        moved = {Axis(a.position + 1, a.size) if isinstance(a, Axis) else a: c for a, c in term.terms.items()}
        terms.append(Expr(term.const, moved, term.ndim + 1))
    return Condition(terms)


def _mean(part: Array, spread: bool = False) -> Array:
    if not part.shape[1]:
        return np.zeros(len(part), np.float32)
    return np.asarray(part.var(axis=1) if spread else part.mean(axis=1))


def bn_aggr(data: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """Mean and variance of everything that went into the given bn_stats results: [P, 2]."""
    data = emit.need(data, "nki.isa.bn_aggr", "data", "sbuf", "psum")

    def compute(x: Array) -> Array:
        count, mean, spread = (as_math(x).reshape(len(x), -1)[:, i::3] for i in range(3))
        total = count.sum(axis=1)
        centre = (count * mean).sum(axis=1) / total
        variance = (spread + count * (mean - centre[:, None]) ** 2).sum(axis=1) / total
        return np.stack([centre, variance], axis=1)

    out = as_dtype(dtype) if dtype is not None else data.dtype
    space, axes = (*data.shape, 2), tuple(range(data.ndim))
    return emit.result("bn_aggr", "vector", space, [(data, axes)], (0, data.ndim), compute, out, mask=_widen(mask))


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.isa", name)
