"""`nki.isa.activation` and `activation_reduce`: functions on the Scalar Engine, with a sum over the free axes.

Source: `nki/api/nki/isa/__init__.py` (aws-neuron-sdk v2.26.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.front import enums
from nxdi_svd_plugin.simulator.place import fail, missing_api
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, bfloat16, float16, float32
from nxdi_svd_plugin.simulator.program.functions import EXACT, UNARY, as_math, op_name
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Reads, View


def activation(
    op: Any,
    data: Any,
    *,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: Any = None,
    reduce_cmd: Any = enums.reduce_cmd.idle,
    mask: Any = None,
    dtype: Any = None,
) -> View:
    """`f(data * scale + bias)` on the Scalar Engine, in fp32; max(64, N) cycles.

    With `reduce_op=np.add` and `reduce_cmd=reset_reduce` the sum over the free axes goes to `reduce_res`, [P, 1]; 64
    cycles more.
    """
    api = "nki.isa.activation"
    name, data = op_name(op, UNARY, api), need(data, api, "data", "sbuf", "psum")
    reads: Reads = [(data, tuple(range(data.ndim)))]
    if isinstance(scale, View):
        scale = elementwise.column(scale, api, "scale", data, (float32,))
        reads.append((scale, elementwise.broadcast_axes(scale, data.shape)))
    if bias is not None and not isinstance(bias, View):
        fail(f"{api}: bias must be a [P, 1] tile of float32, float16 or bfloat16 (err_activation_bias_invalid_type)")
    if bias is not None:
        if name == "reciprocal":
            fail(f"{api}: reciprocal takes no bias on NeuronCore-v2")
        bias = elementwise.column(bias, api, "bias", data, (float32, float16, bfloat16))
        reads.append((bias, elementwise.broadcast_axes(bias, data.shape)))
    function, constant = UNARY[name], None if isinstance(scale, View) else np.float32(scale)

    def compute(x: Array, *vectors: Array) -> Array:
        rest = list(vectors)
        x = as_math(x) * (as_math(rest.pop(0)) if constant is None else constant)
        return function(x + as_math(rest.pop(0)) if rest else x)

    if reduce_op is not None or reduce_res is not None:
        _sum(api, reduce_op, reduce_res, reduce_cmd, data, reads, compute, mask)
    out = as_dtype(dtype) if dtype is not None else data.dtype
    approximate = name not in EXACT
    return emit.result(
        "activation", "scalar", data.shape, reads, reads[0][1], compute, out, mask=mask, approximate=approximate
    )


def _sum(
    api: str, op: Any, res: Any, command: Any, data: View, reads: Reads, compute: Callable[..., Array], mask: Any
) -> None:
    """The sum of what the function gives, in fp32; it stands before the function so that its result can be moved."""
    if command != enums.reduce_cmd.reset_reduce:
        missing_api(api, f"reduce_cmd.{getattr(command, 'name', command)}")
    if getattr(op, "__name__", op) != "add":
        fail(f"{api}: reduce_op is np.add or nl.add on NeuronCore-v2")
    res = elementwise.column(res, api, "reduce_res", data, ())

    def total(*operands: Array) -> Array:
        return np.asarray(compute(*operands).sum(axis=tuple(range(1, data.ndim)), keepdims=True))

    axes = (0, *[None] * (data.ndim - 1))
    emit.instruction("activation_sum", "scalar", data.shape, reads, (res, axes), total, res.dtype, mask)


def activation_reduce(
    op: Any,
    data: Any,
    *,
    reduce_op: Any,
    reduce_res: Any,
    bias: Any = None,
    scale: Any = 1.0,
    mask: Any = None,
    dtype: Any = None,
) -> View:
    """`activation` that also writes the sum of its result over the free axes to `reduce_res`."""
    return activation(
        op,
        data,
        bias=bias,
        scale=scale,
        reduce_op=reduce_op,
        reduce_res=reduce_res,
        reduce_cmd=enums.reduce_cmd.reset_reduce,
        mask=mask,
        dtype=dtype,
    )
