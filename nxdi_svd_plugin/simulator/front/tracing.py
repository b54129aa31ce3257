"""From a kernel call to a traced program: inputs bound, the function run under a tracer, outputs checked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import CodeType
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.front.style import refuse_interleaving, watched
from nxdi_svd_plugin.simulator.front.tensor import Tensor
from nxdi_svd_plugin.simulator.front.typing import TensorSpec
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import UnrollRequest
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, storage
from nxdi_svd_plugin.simulator.program.program import View
from nxdi_svd_plugin.simulator.program.races import check_races
from nxdi_svd_plugin.simulator.program.scan import check_loop_reductions
from nxdi_svd_plugin.simulator.program.tracer import Tracer


def trace_kernel(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    strict: bool,
    target: str,
    grid: tuple[int, ...],
    count_only: bool,
    aws_style: bool = False,
) -> tuple[Tracer, list[View], bool]:
    """The traced program of a kernel call, its outputs, and whether the kernel returns a tuple of them.

    Loops that an `if` looks into are traced again, unrolled. `aws_style` refuses what front/style.py lists.
    """
    if strict:
        _refuse_plain_range(function)
    unrolled: set[tuple[str, int]] = set()
    while True:
        tracer = Tracer(strict, target, unrolled, grid, Tensor, getattr(function, "__code__", None))
        try:
            with tracer, watched(tracer.code) if aws_style else nullcontext():
                returned = _call(tracer, function, args, kwargs, count_only)
        except UnrollRequest as request:
            if request.sites <= unrolled:
                raise
            unrolled = unrolled | request.sites
            continue
        if aws_style:
            refuse_interleaving(tracer.top)
        check_loop_reductions(tracer.top)
        if strict:
            check_races(tracer.top)
        return tracer, _outputs(returned, strict), isinstance(returned, (tuple, list))


def _call(tracer: Tracer, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], count_only: bool) -> Any:
    inputs = [_bind(tracer, value, count_only) for value in args]
    options = {name: _bind(tracer, value, count_only) for name, value in kwargs.items()}
    tracer.open_grid()
    returned = function(*inputs, **options)
    tracer.close_grid()
    return returned


def _refuse_plain_range(function: Any) -> None:
    """The device traces the body of a plain `range` once; Python, here, would run it with integers."""
    code = getattr(function, "__code__", None)
    if code is not None and "range" in _names(code) and function.__globals__.get("range", range) is range:
        fail(
            "a kernel with plain range: on the device its body is traced once, as that of nl.sequential_range; "
            "write nl.sequential_range, or nl.static_range to unroll",
            (code.co_filename, code.co_firstlineno),
        )


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that a function and the functions inside it use."""
    inside = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inside)


def _outputs(returned: Any, strict: bool) -> list[View]:
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    for output in outputs:
        if not isinstance(output, View):
            fail(
                f"a kernel returns its output tensors, found {type(output).__name__} (err_tensor_output_not_written_to)"
            )
        if output.shape != output.base.shape and not output.entire:
            fail(f"a kernel returns whole tensors, found a part: {output!r}", output.base.place)
        allowed = ("shared_hbm",) if strict else ("shared_hbm", "hbm")
        if output.buffer not in allowed and output.base.data is None:
            fail(f"kernel outputs must be in nl.shared_hbm, found {output.buffer}", output.base.place)
    return outputs


def _bind(tracer: Tracer, value: Any, count_only: bool) -> Any:
    """An array becomes a read-only HBM tensor, also one in a list; everything else is a constant."""
    if isinstance(value, list):
        return [_bind(tracer, each, count_only) for each in value]
    placeholder = count_only and hasattr(value, "shape") and hasattr(value, "dtype") and not np.isscalar(value)
    if not placeholder and not isinstance(value, np.ndarray):
        if isinstance(value, TensorSpec):
            fail("a placeholder instead of an array: use count_only=True")
        return value
    dtype = as_dtype(value.dtype)
    held = storage(dtype)
    data: Array = np.zeros(1, held) if placeholder else np.ascontiguousarray(value).astype(held).ravel()
    return tracer.constant(tuple(int(n) for n in value.shape), dtype, data, "<input>")
