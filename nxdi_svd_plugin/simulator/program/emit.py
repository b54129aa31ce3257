"""Adding instructions to the traced program: result tiles, assignment, forwarding of a result to its destination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.simulator.place import fail, kernel_place
from nxdi_svd_plugin.simulator.program.affine import Expr
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, is_float, rounded, scalar_dtype
from nxdi_svd_plugin.simulator.program.operands import add_mask, check_read, check_write, need, on_axes
from nxdi_svd_plugin.simulator.program.program import Axes, Instr, Operand, Reads, Storage, View, row_major
from nxdi_svd_plugin.simulator.program.tracer import tracer


def instruction(
    op: str,
    engine: str,
    space: tuple[int, ...],
    reads: Reads,
    write: tuple[View, Axes],
    compute: Callable[..., Array],
    dtype: np.dtype[Any],
    mask: Any = None,
    mask_axes: Axes | None = None,
    indices: Sequence[Expr] = (),
    **info: Any,
) -> Instr:
    """Check the operands and append the instruction to the current block.

    `mask_axes`: instruction axes along which the mask's axes run, all of them if None; `indices` run along all.
    """
    current = tracer()
    instr = Instr(
        op,
        engine,
        space,
        [Operand(*r) for r in reads],
        Operand(*write),
        compute,
        dtype,
        kernel_place(),
        current.block,
        info=info,
    )
    every = tuple(range(len(space)))
    add_mask(instr, mask, every if mask_axes is None else mask_axes)
    instr.indices = [on_axes(instr, expr, len(space), every) for expr in indices]
    for operand in instr.reads:
        check_read(instr, operand)
        unforward(operand.view)
    check_write(instr)
    current.block.nodes.append(instr)
    return instr


def allocate(shape: tuple[int, ...], dtype: Any, buffer: str, par: int = 0, name: str = "") -> View:
    """A new tensor in the current block, with the checks of its memory."""
    dtype, current = as_dtype(dtype), tracer()
    if any(not isinstance(n, (int, np.integer)) or n <= 0 for n in shape):
        fail(f"a tensor shape has positive integers, found {shape}")
    shape = tuple(int(n) for n in shape)
    if buffer in ("sbuf", "psum"):
        if len(shape) - par < 2:
            fail(f"on-chip tensors are at least 2-D, found {list(shape)}: write (128, 1) instead of (128,)")
        if shape[par] > PARTITIONS:
            fail(f"partition dimension {shape[par]} exceeds the {PARTITIONS} partitions of {buffer}")
    block = current.block
    if buffer == "shared_hbm":
        if any(loop.kind != "grid" for loop in current.block.loops()) or current.in_helper():
            fail(
                "nl.shared_hbm tensors are made at the top level of the kernel, not in a loop or another function "
                "(err_shared_hbm_must_in_kernel_level)"
            )
        block = current.top
    return current.allocate(Storage(shape, dtype, buffer, par, block, kernel_place(), name))


# ---- results and assignment
def result(
    op: str,
    engine: str,
    space: tuple[int, ...],
    reads: Reads,
    out_axes: Axes,
    compute: Callable[..., Array],
    dtype: np.dtype[Any],
    buffer: str = "sbuf",
    mask: Any = None,
    **info: Any,
) -> View:
    """An instruction whose result is a new tile with one axis per entry of `out_axes` (None: size 1)."""
    shape = tuple(1 if axis is None else space[axis] for axis in out_axes)
    if not shape or shape[0] > PARTITIONS:
        fail(f"{op}: a result of {shape[0] if shape else 0} partitions exceeds the limit of {PARTITIONS}")
    made = allocate(shape, dtype, buffer)
    instr = instruction(op, engine, space, reads, (made, out_axes), compute, dtype, mask, **info)
    made.base.producer = instr
    return made


def fit(view: View, shape: tuple[int, ...]) -> View | None:
    """The view under a shape that differs by size-1 axes, or by splits and merges of contiguous free axes; or None."""
    if view.shape == shape:
        return view
    mine = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    if [n for n, _ in mine] == [n for n in shape if n != 1]:
        rest = iter(s for _, s in mine)
        return view.like(shape, tuple(0 if n == 1 else next(rest) for n in shape))
    free, contiguous = view.shape[1:], row_major(view.shape[1:])
    if (
        shape[0] == view.shape[0]
        and prod(shape[1:]) == prod(free)
        and view.strides[1:] == contiguous
        and not view.checks
    ):
        return view.like(shape, (view.strides[0], *row_major(shape[1:])))
    return None


def _repeated(view: View, shape: tuple[int, ...]) -> View | None:
    """`fit`, or the view repeated along free axes where it has one element, as numpy does in an assignment; or None."""
    fitted, missing = fit(view, shape), len(shape) - view.ndim
    if fitted is not None or missing < 0:
        return fitted
    sizes = (view.shape[0], *[1] * missing, *view.shape[1:])
    steps = (view.strides[0], *[0] * missing, *view.strides[1:])
    if any(n not in (1, m) for n, m in zip(sizes[1:], shape[1:], strict=True)):
        return None
    return view.like(shape, tuple(s if n == m else 0 for n, m, s in zip(sizes, shape, steps, strict=True)))


def forward(value: View, target: View, accumulate: bool = False) -> bool:
    """Let the instruction that makes `value` write into `target` instead; False if a copy is needed."""
    instr = value.base.producer
    if instr is None or value.base.target is not None or value.updated or value.shape != value.base.shape:
        return False
    if not instr.block.nodes or instr.block.nodes[-1] is not instr or tracer().block is not instr.block:
        return False
    allowed = {"pe": ("psum",), "dma": ("sbuf",)}.get(instr.engine, ("sbuf", "psum"))
    fitted = fit(target, value.shape) if target.shape[0] == value.shape[0] else None
    if target.buffer not in allowed or fitted is None or (accumulate and not instr.info.get("product")):
        return False
    value.base.target, instr.accumulate = target, accumulate
    instr.write = Operand(fitted, instr.write.axes)
    check_write(instr)
    return True


def unforward(view: View) -> None:
    """A tile that was moved into another tensor is used again: give it its memory back and copy instead."""
    target, instr = view.base.target, view.base.producer
    if target is None or instr is None:
        return
    if instr.accumulate:
        fail(f"{instr.op}: the result of an accumulation is used a second time; read the accumulator instead")
    view.base.target = None
    moved, instr.write = instr.write, Operand(View.whole(view.base), instr.write.axes)
    axes = tuple(range(len(view.base.shape)))
    source = Operand(View.whole(view.base), axes)
    extra = Instr(
        "copy",
        chosen_engine(view, moved.view),
        view.base.shape,
        [source],
        Operand(moved.view, axes),
        as_is,
        moved.view.dtype,
        instr.place,
        instr.block,
    )
    nodes = instr.block.nodes
    nodes.insert(nodes.index(instr) + 1, extra)


def chosen_engine(*operands: View) -> str:
    """Engine of a copy or of a tile against scalars where the kernel leaves it to the compiler.

    The Scalar Engine for floating types: in Trn1 profiles of kernels whose only such work are copies out of PSUM, the
    Vector Engine is idle (docs/simulator.md). Integers, which pass through fp32 there, go to the Vector Engine.
    """
    return "scalar" if all(is_float(operand.dtype) for operand in operands) else "vector"


def as_is(values: Array) -> Array:
    """The copy instruction's arithmetic."""
    return values


def assign(target: View, value: Any) -> None:
    """`target[...] = value`."""
    need(target, "assignment", "destination", "sbuf", "psum")
    if not isinstance(value, View):
        fill(target, value)
        return
    if forward(value, target):
        return
    need(value, "assignment", "source", "sbuf", "psum")
    source = _repeated(value, target.shape) if value.shape[0] == target.shape[0] else None
    if source is None:
        fail(f"assignment of {list(value.shape)} to a destination of {list(target.shape)}")
    axes = tuple(range(target.ndim))
    instruction(
        "copy", chosen_engine(source, target), target.shape, [(source, axes)], (target, axes), as_is, target.dtype
    )


def fill(target: View, value: Any, engine: str = "vector", mask: Any = None, split: bool = True, **info: Any) -> Instr:
    """Memset of a constant; `split`: the compiler may make several instructions of it."""
    scalar_dtype(value)  # raises for what is no number
    axes = tuple(range(target.ndim))
    constant = rounded(np.asarray(value, dtype=np.float64 if is_float(target.dtype) else None), target.dtype)
    return instruction(
        "memset",
        engine,
        target.shape,
        [],
        (target, axes),
        lambda: constant,
        target.dtype,
        mask,
        zero=not np.any(constant),
        split=split,
        **info,
    )
