"""Calling a kernel: `jit` objects, the launch grid, tracing, and `simulate` with its counters."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.front.typing import TensorSpec
from nxdi_svd_plugin.simulator.limits import DMA_BYTES_PER_SECOND
from nxdi_svd_plugin.simulator.machine.execute import Machine
from nxdi_svd_plugin.simulator.machine.trace import Trace, analyse, release_free_zeros
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import tensor
from nxdi_svd_plugin.simulator.program.affine import Expr
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, storage
from nxdi_svd_plugin.simulator.program.extents import all_extents
from nxdi_svd_plugin.simulator.program.program import Block, Storage, Tracer, UnrollRequest, instructions

LENIENT_DEPTH = [0]  # > 0 inside as_neuronxcc(): kernels decorated there are other people's


class Kernel:
    """A `@nki.jit` function. Calling it simulates it; inside another kernel it is traced inline; `kernel[g0, g1]`
    sets a grid.
    """

    def __init__(
        self, function: Callable[..., Any], target: str = "trn1", grid: tuple[int, ...] = (), strict: bool = True
    ) -> None:
        self.function, self.target, self.grid, self.strict = function, target, grid, strict
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __getitem__(self, grid: Any) -> Kernel:
        """The kernel with a launch grid."""
        grid = grid if isinstance(grid, tuple) else (grid,)
        if self.strict and self.target == "trn1" and any(type(g).__name__ == "nc" for g in grid):
            fail("nl.nc: a kernel runs on one core of Trn1; use a plain grid")
        sizes = tuple(int(g) for g in grid)
        return Kernel(self.function, self.target, sizes, self.strict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Simulate, or trace inline inside of another kernel."""
        if Tracer.current is not None:
            if self.grid:
                fail("a kernel called inside a kernel takes no grid (err_nested_kernel_with_spmd_grid)")
            return self.function(*args, **kwargs)
        return run(self, args, kwargs, self.strict)[0]


def simulate(
    kernel: Any,
    *args: Any,
    strict: bool = True,
    count_only: bool = False,
    seed: int = 0,
    dma_bytes_per_second: float = DMA_BYTES_PER_SECOND,
    grid: tuple[int, ...] = (),
    **kernel_options: Any,
) -> tuple[Any, Trace]:
    """Run a kernel on numpy arrays and count what Trn1 would move and compute.

    Args:
        kernel: a `@nki.jit` kernel or a plain function of the NKI dialect.
        args: numpy arrays (HBM inputs; placeholders with `shape` and `dtype` will do with `count_only`) and
        compile-time constants.
        strict: more than 176 KiB of SBUF per partition and reads of unwritten memory are errors; otherwise
        spills are counted.
        count_only: no arithmetic; outputs are placeholders (`TensorSpec`).
        seed: seed of the order in which iterations of `affine_range` run.
        dma_bytes_per_second: bandwidth of the latency model.
        grid: launch grid, as in `kernel[grid]`.
        kernel_options: passed on to the kernel.

    Returns:
        the kernel's output (an array or a tuple of arrays) and the Trace.

    Raises:
        SimulatorError: the kernel breaks a limit or a rule; the message names it and the kernel line.
    """
    if not isinstance(kernel, Kernel):
        kernel = Kernel(getattr(kernel, "__wrapped__", kernel))
    if grid:
        kernel = kernel[grid]
    return run(kernel, args, kernel_options, strict, count_only, seed, dma_bytes_per_second)


def run(
    kernel: Kernel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    strict: bool,
    count_only: bool = False,
    seed: int = 0,
    bandwidth: float = DMA_BYTES_PER_SECOND,
) -> tuple[Any, Trace]:
    """Trace, check, execute and count."""
    tracer, outputs = trace_kernel(kernel, args, kwargs, strict, count_only)
    top = tracer.top
    release_free_zeros(top)
    counts: dict[Any, Any] = {instr: all_extents(instr) for instr in instructions(top)}
    written = {instr.write.view.base for instr in instructions(top)}
    for output in outputs:
        if output.base not in written:
            fail(f"output {output!r} is never written (err_tensor_output_not_written_to)", output.base.place)
    if count_only:
        arrays: list[Any] = [TensorSpec(output.shape, output.dtype) for output in outputs]
    else:
        machine = execute(tracer, strict, seed)
        counts = {instr: machine.executed.get(instr, {}) for instr in instructions(top)}
        arrays = [_fetch(machine, output, strict) for output in outputs]
    trace = analyse(top, counts, strict, bandwidth, tracer.warnings)
    return (arrays[0] if len(arrays) == 1 and not tracer.returned_tuple else tuple(arrays)), trace


def execute(tracer: Tracer, strict: bool, seed: int) -> Machine:
    """Run the traced program on fresh memory."""
    machine = Machine(strict, seed)
    for store in tracer.storages:
        if store.data is not None:
            machine.allocate(store)
    with np.errstate(all="ignore"):
        machine.run(tracer.top)
    return machine


def trace_kernel(
    kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any], strict: bool, count_only: bool
) -> tuple[Tracer, list[tensor.View]]:
    """Trace the kernel function; loops that an `if` looks into are traced again, unrolled."""
    if strict:
        _refuse_plain_range(kernel.function)
    unrolled: set[tuple[str, int]] = set()
    while True:
        tracer = Tracer(strict, kernel.target, unrolled, kernel.grid, getattr(kernel.function, "__code__", None))
        with tracer:
            inputs = [_bind(a, count_only) for a in args]
            options = {name: _bind(value, count_only) for name, value in kwargs.items()}
            tracer.open_grid()
            try:
                returned = kernel.function(*inputs, **options)
            except UnrollRequest as request:
                if request.sites <= unrolled:
                    raise
                unrolled = unrolled | request.sites
                continue
            tracer.close_grid()
        tracer.returned_tuple = isinstance(returned, (tuple, list))
        return tracer, _outputs(returned, strict)


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


def _outputs(returned: Any, strict: bool) -> list[tensor.View]:
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    for output in outputs:
        if not isinstance(output, tensor.View):
            fail(
                f"a kernel returns its output tensors, found {type(output).__name__} (err_tensor_output_not_written_to)"
            )
        allowed = ("shared_hbm",) if strict else ("shared_hbm", "hbm")
        if output.buffer not in allowed and output.base.data is None:
            fail(f"kernel outputs must be in nl.shared_hbm, found {output.buffer}", output.base.place)
    return outputs


def _bind(value: Any, count_only: bool) -> Any:
    """An array becomes a read-only HBM tensor; everything else is a compile-time constant."""
    placeholder = count_only and hasattr(value, "shape") and hasattr(value, "dtype") and not np.isscalar(value)
    if not placeholder and not isinstance(value, np.ndarray):
        if isinstance(value, TensorSpec):
            fail("a placeholder instead of an array: use count_only=True")
        return value
    dtype = as_dtype(value.dtype)
    data: Array = (
        np.zeros(1, storage(dtype)) if placeholder else np.ascontiguousarray(value).astype(storage(dtype)).ravel()
    )
    current = Tracer.current
    store = Storage(
        tuple(int(n) for n in value.shape), dtype, "hbm", 0, current.top if current else Block(), ("<input>", 0)
    )
    store.data, store.mutable = data, False
    if current is not None:
        current.storages.append(store)
    return tensor.whole(store)


def _fetch(machine: Machine, output: tensor.View, strict: bool) -> Array:
    data, written = machine.memory[output.base]
    if strict and written is not None and not written.all():
        fail(f"{int((~written).sum())} elements of output {output!r} were never written", output.base.place)
    return data.reshape(output.base.shape).astype(output.dtype)


def program_id(axis: int) -> Any:
    """The index of this instance along a grid dimension."""
    variables = Tracer.current.grid_vars if Tracer.current else []
    if not 0 <= axis < len(variables):
        fail(f"program_id({axis}) in a grid of {len(variables)} dimensions; launch the kernel as kernel[g0, ...]")
    return Expr(0, {variables[axis]: 1})
