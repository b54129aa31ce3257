"""`neuronxcc.nki.isa`: one function per hardware instruction.

The operand rules are those of `nki/api/nki/isa/__init__.py` (aws-neuron-sdk v2.26.1).
"""

from __future__ import annotations

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.front import enums as constants
from nxdi_svd_plugin.simulator.front.activation import activation, activation_reduce
from nxdi_svd_plugin.simulator.front.enums import dge_mode, engine, nc_version, oob_mode, reduce_cmd
from nxdi_svd_plugin.simulator.place import fail, missing_api
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.dma import dma_copy, dma_engine, dma_transpose
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, is_float, scalar_dtype
from nxdi_svd_plugin.simulator.program.functions import ARITHMETIC, BINARY, BITVEC, REDUCE, as_math, op_name
from nxdi_svd_plugin.simulator.program.matmul import nc_matmul, nc_transpose
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Reads, View
from nxdi_svd_plugin.simulator.program.scan import tensor_tensor_scan
from nxdi_svd_plugin.simulator.program.selection import affine_select, iota, max8
from nxdi_svd_plugin.simulator.program.statistics import bn_aggr, bn_stats
from nxdi_svd_plugin.simulator.program.tracer import tracer

__all__ = [
    "activation",
    "activation_reduce",
    "affine_select",
    "bn_aggr",
    "bn_stats",
    "constants",
    "dge_mode",
    "dma_copy",
    "dma_engine",
    "dma_transpose",
    "engine",
    "iota",
    "max8",
    "nc_matmul",
    "nc_transpose",
    "nc_version",
    "oob_mode",
    "reduce_cmd",
    "tensor_tensor_scan",
]

tensor_engine, scalar_engine, vector_engine, gpsimd_engine, unknown_engine = (
    "pe",
    "scalar",
    "vector",
    "gpsimd",
    "unknown",
)


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


def tensor_tensor(
    data1: Any, data2: Any, op: Any, *, dtype: Any = None, mask: Any = None, engine: Any = unknown_engine
) -> View:
    """Element-wise on the Vector Engine; one operand may be in PSUM; N or 2N cycles."""
    api = "nki.isa.tensor_tensor"
    views = [need(v, api, name, "sbuf", "psum") for name, v in (("data1", data1), ("data2", data2))]
    if views[0].shape[0] != views[1].shape[0]:
        fail(f"{api}: {views[0].shape[0]} and {views[1].shape[0]} partitions (err_num_partition_mismatch)")
    _same_size(api, *views)
    name = op_name(op, BINARY, api)
    where = _engine(engine, api, "gpsimd" if name == "power" else "vector", "vector", "gpsimd")
    if where == "gpsimd" and any(v.buffer == "psum" for v in views):
        fail(f"{api}: the GpSimd Engine cannot access PSUM")
    return elementwise.binary(
        name, views[0], views[1], dtype=dtype, mask=mask, engine=where, broadcast_partitions=False, api=api
    )


def _same_size(api: str, left: View, right: View) -> None:
    """The API's words; public kernels broadcast [P, 1] all the same, which lenient runs take."""
    if tracer().strict and prod(left.shape[1:]) != prod(right.shape[1:]):
        fail(f"{api}: {list(left.shape)} and {list(right.shape)}: both tiles have as many elements per partition")


def _scalar_operand(value: Any, api: str, name: str, data: View) -> Any:
    if isinstance(value, View):
        return elementwise.column(value, api, name, data, ())
    scalar_dtype(value)  # raises for what is no number
    return value


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
    data = need(data, api, "data", "sbuf", "psum")
    steps = [(op_name(op0, {**BINARY, "rsqrt": None}, api), _scalar_operand(operand0, api, "operand0", data), reverse0)]
    if op1 is not None:
        steps.append((op_name(op1, BINARY, api), _scalar_operand(operand1, api, "operand1", data), reverse1))
    linear = all(name in elementwise.LINEAR for name, _, _ in steps)
    picked = emit.chosen_engine(data) if linear else "gpsimd" if steps[0][0] == "rsqrt" else "vector"
    where = _engine(engine, api, picked, "vector", "gpsimd")
    return _chain("tensor_scalar", where, data, steps, dtype, mask)


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
    """`(data op0 operand0) op1 operand1`, operand0 a scalar or [P, 1], operand1 a tile; 2N cycles, Vector Engine."""
    api = "nki.isa.scalar_tensor_tensor"
    data = need(data, api, "data", "sbuf", "psum")
    other = need(operand1, api, "operand1", "sbuf", "psum")
    if data.buffer == other.buffer == "psum":
        fail(f"{api}: two PSUM operands; the Vector Engine reads at most one from PSUM")
    _same_size(api, data, other)
    steps = [
        (op_name(op0, ARITHMETIC, api), _scalar_operand(operand0, api, "operand0", data), reverse0),
        (op_name(op1, ARITHMETIC, api), other, reverse1),
    ]
    return _chain("scalar_tensor_tensor", "vector", data, steps, dtype, mask)


def _chain(op: str, where: str, data: View, steps: list[Any], dtype: Any, mask: Any) -> View:
    """Apply binary operators one after the other to a tile: in fp32, or bit operators to integers."""
    reads: Reads = [(data, tuple(range(data.ndim)))]
    for _, operand, _ in steps:
        if isinstance(operand, View):
            reads.append((operand, elementwise.broadcast_axes(operand, data.shape)))
    bits = _bits(f"nki.isa.{op}", data, steps)

    def compute(x: Array, *tiles: Array) -> Array:
        rest, cast = iter(tiles), (lambda values: values.astype(data.dtype)) if bits else as_math
        x = cast(x)
        for name, operand, reverse in steps:
            y = cast(next(rest) if isinstance(operand, View) else np.asarray(operand))
            if name == "rsqrt":
                x = 1 / np.sqrt(x + y)
            else:
                x = cast(np.asarray(BINARY[name](y, x) if reverse else BINARY[name](x, y)))
        return x

    out = as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result(op, where, data.shape, reads, reads[0][1], compute, out, mask=mask, alu=steps[0][0])


def _bits(api: str, data: View, steps: list[Any]) -> bool:
    """True for bit operators: all or none of them, on integers."""
    names = {name for name, _, _ in steps}
    if not names & BITVEC:
        return False
    kinds = [data.dtype, *(v.dtype if isinstance(v, View) else scalar_dtype(v) for _, v, _ in steps)]
    if names - BITVEC:
        fail(f"{api}: op0 and op1 are both bit operators or both arithmetic, found {' and '.join(sorted(names))}")
    if any(is_float(kind) for kind in kinds):
        fail(f"{api}: bit operators take integers, found {' and '.join(map(str, kinds))}")
    return True


def tensor_copy(src: Any, *, mask: Any = None, dtype: Any = None, engine: Any = unknown_engine) -> View:
    """A copy on the Vector Engine (default) or GpSimd (SBUF only); max(64, N) cycles.

    The Scalar Engine copies by `activation(nl.copy)`.
    """
    api = "nki.isa.tensor_copy"
    src = need(src, api, "src", "sbuf", "psum")
    where = _engine(engine, api, "vector", "vector", "gpsimd")
    if where == "gpsimd" and src.buffer == "psum":
        fail(f"{api}: the GpSimd Engine cannot access PSUM")
    return elementwise.copy(src, as_dtype(dtype) if dtype is not None else None, mask, where, api)


def tensor_reduce(
    op: Any, data: Any, axis: Any, *, mask: Any = None, dtype: Any = None, negate: bool = False, keepdims: bool = False
) -> View:
    """Reduction over free axes on the Vector Engine; N cycles (N/2 for bf16 add or maximum)."""
    api = "nki.isa.tensor_reduce"
    data = need(data, api, "data", "sbuf", "psum")
    axes = sorted(a % data.ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if 0 in axes:
        fail(f"{api}: axis 0 is the partition axis; only free axes are reduced")
    if tracer().strict and axes != list(range(data.ndim - len(axes), data.ndim)):
        fail(f"{api}: axes {axes} of {data.ndim}; the last ones are reduced, without gaps")
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
    made = emit.allocate(tuple(shape), dtype, "sbuf")
    where = _engine(engine, "nki.isa.memset", "vector", "vector", "gpsimd")
    instr = emit.fill(made, value, where, mask, split=False)
    made.base.producer = instr
    return made


def reciprocal(data: Any, *, dtype: Any = None, mask: Any = None) -> View:
    """1 / data on the Vector Engine; max(64, 2N) cycles."""
    data = need(data, "nki.isa.reciprocal", "data", "sbuf", "psum")
    axes, out = tuple(range(data.ndim)), as_dtype(dtype) if dtype is not None else data.dtype
    return emit.result(
        "reciprocal", "vector", data.shape, [(data, axes)], axes, lambda x: 1 / as_math(x), out, mask=mask
    )


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.isa", name)
