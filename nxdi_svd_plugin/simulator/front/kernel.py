"""Calling a kernel: `jit` objects, the launch grid, and `simulate` with its counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nxdi_svd_plugin.hardware import DMA_BYTES_PER_SECOND
from nxdi_svd_plugin.simulator.front.language import nc
from nxdi_svd_plugin.simulator.front.tracing import trace_kernel
from nxdi_svd_plugin.simulator.front.typing import TensorSpec
from nxdi_svd_plugin.simulator.machine.execute import execute
from nxdi_svd_plugin.simulator.machine.trace import Trace, analyse, release_free_zeros
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.extents import all_extents
from nxdi_svd_plugin.simulator.program.program import instructions
from nxdi_svd_plugin.simulator.program.tracer import Tracer


class Kernel:
    """A `@nki.jit` function: calling it simulates it, inside another kernel it is traced inline.

    `kernel[g0, g1]` is the kernel with a launch grid.
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
        if self.strict and self.target == "trn1" and any(isinstance(g, nc) for g in grid):
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
    aws_style: bool = False,
    hoist: bool = False,
    approximation: float = 0.0,
    **kernel_options: Any,
) -> tuple[Any, Trace]:
    """Run a kernel on numpy arrays and count what Trn1 would move and compute.

    Args:
        kernel: a `@nki.jit` kernel or a plain function of the NKI dialect.
        args: numpy arrays (HBM inputs; placeholders with `shape` and `dtype` will do with `count_only`) and
            compile-time constants.
        strict: more than 176 KiB of SBUF per partition and reads of unwritten memory are errors; otherwise spills
            are counted.
        count_only: no arithmetic; outputs are placeholders (`TensorSpec`).
        seed: seed of the order in which iterations of `affine_range` run, and of `approximation`.
        dma_bytes_per_second: bandwidth of the latency model.
        grid: launch grid, as in `kernel[grid]`.
        aws_style: also refuse what no public AWS kernel does (front/style.py); for kernels that must compile unseen.
        hoist: count a load that is the same in every iteration of a loop once, as AWS's compiler does where it fits.
        approximation: largest relative error of exp, SiLU and the other activations that a device approximates, drawn
            by `seed`; 0 computes them exactly, `hardware.ACTIVATION_ERROR` is a guess at the device.
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
    options = strict, count_only, seed, dma_bytes_per_second, aws_style, hoist, approximation
    return run(kernel, args, kernel_options, *options)


def run(
    kernel: Kernel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    strict: bool,
    count_only: bool = False,
    seed: int = 0,
    bandwidth: float = DMA_BYTES_PER_SECOND,
    aws_style: bool = False,
    hoist: bool = False,
    approximation: float = 0.0,
) -> tuple[Any, Trace]:
    """Trace, check, execute and count."""
    tracer, outputs, several = trace_kernel(
        kernel.function,
        args,
        kwargs,
        strict=strict,
        target=kernel.target,
        grid=kernel.grid,
        count_only=count_only,
        aws_style=aws_style,
    )
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
        machine = execute(top, tracer.storages, strict, seed, approximation)
        counts = {instr: machine.executed.get(instr, {}) for instr in instructions(top)}
        arrays = [machine.fetch(output) for output in outputs]
    trace = analyse(top, counts, strict, bandwidth, tracer.warnings, hoist)
    return (tuple(arrays) if several else arrays[0]), trace
