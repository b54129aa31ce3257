"""Running results: `tensor_tensor_scan` along a tile, `loop_reduce` over the iterations of loops.

Source: `nki/api/nki/isa/__init__.py` and `nki/api/nki/language/__init__.py` (aws-neuron-sdk v2.26.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.affine import Expr, LoopVar
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, promote
from nxdi_svd_plugin.simulator.program.functions import ARITHMETIC, BINARY, as_math, op_name
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Block, Reads, View, instructions


def tensor_tensor_scan(
    data0: Any,
    data1: Any,
    initial: Any,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    *,
    dtype: Any = None,
    mask: Any = None,
) -> View:
    """`y[i] = (data0[i] op0 y[i-1]) op1 data1[i]` per partition, `y[-1] = initial`; Vector Engine, 2N cycles."""
    api = "nki.isa.tensor_tensor_scan"
    pair = [need(v, api, name, "sbuf", "psum") for name, v in (("data0", data0), ("data1", data1))]
    if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
        fail(f"{api}: takes two tiles [P, N] of one shape, found {list(pair[0].shape)} and {list(pair[1].shape)}")
    if pair[0].buffer == pair[1].buffer == "psum":
        fail(f"{api}: two PSUM operands; the Vector Engine reads at most one from PSUM")
    reads: Reads = [(v, (0, 1)) for v in pair]
    if isinstance(initial, View):
        start = elementwise.column(initial, api, "initial", pair[0], ())
        reads.append((start, elementwise.broadcast_axes(start, pair[0].shape)))
    first, second = (BINARY[op_name(op, ARITHMETIC, api)] for op in (op0, op1))

    def compute(x: Array, y: Array, *state: Array) -> Array:
        x, y, out = as_math(x), as_math(y), np.empty(x.shape, np.float32)
        now = as_math(state[0])[:, 0] if state else np.full(len(x), initial, np.float32)
        for i in range(x.shape[1]):
            now = first(now, x[:, i]) if reverse0 else first(x[:, i], now)
            now = as_math(second(y[:, i], now) if reverse1 else second(now, y[:, i]))
            out[:, i] = now
        return out

    kind = as_dtype(dtype) if dtype is not None else promote(pair[0].dtype, pair[1].dtype)
    return emit.result("tensor_tensor_scan", "vector", pair[0].shape, reads, (0, 1), compute, kind, mask=mask)


def loop_reduce(x: Any, op: Any, loop_indices: Any, *, dtype: Any = None, mask: Any = None, name: str = "") -> View:
    """`t[...] = nl.loop_reduce(x, op, [i])`: t becomes `t op x` in every iteration of loop i, x where it held nothing.

    A tensor_tensor instruction on the Vector Engine.
    """
    api = "nki.language.loop_reduce"
    x = need(x, api, "x", "sbuf", "psum")
    listed = loop_indices if isinstance(loop_indices, (tuple, list)) else (loop_indices,)
    over: set[LoopVar] = set().union(*(index.variables() for index in listed if isinstance(index, Expr)))
    given = getattr(op, "__name__", str(op))
    function = BINARY[op_name(_REDUCTIONS.get(given, given), BINARY, api)]
    axes, kind = tuple(range(x.ndim)), as_dtype(dtype) if dtype is not None else x.dtype
    return emit.result(
        "loop_reduce",
        "vector",
        x.shape,
        [(x, axes)],
        axes,
        as_math,
        kind,
        mask=mask,
        over=over,
        reduce=function,
        alu="add",
    )


_REDUCTIONS = {"max": "maximum", "min": "minimum", "amax": "maximum", "amin": "minimum", "sum": "add"}


def check_loop_reductions(top: Block) -> None:
    """Raise for a `loop_reduce` whose result was not assigned to a tensor: there is nothing that it could add to."""
    for instr in instructions(top):
        if instr.op == "loop_reduce" and instr.write.view.base.producer is instr:
            fail(
                "nki.language.loop_reduce: assign the result to a tensor made outside of the loop: t[...] = ...",
                instr.place,
            )
