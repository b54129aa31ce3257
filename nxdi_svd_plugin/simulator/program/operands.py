"""What an instruction asks of its operands: memory, size, access pattern, bounds, independent iterations.

The rules are those of `nki/arch/trainium_inferentia2_arch.rst` and `nki/api/nki.errors.rst` (aws-neuron-sdk v2.26.1);
errors carry the name (`err_...`) that the real front end gives them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import ACCESS_AXES, ACCESS_STRIDE, ENGINE_ELEMENTS, PSUM_BANK_BYTES
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import Axis, Condition, Expr, Quasi
from nxdi_svd_plugin.simulator.program.extents import values_over_loops
from nxdi_svd_plugin.simulator.program.program import Axes, Instr, Operand, View
from nxdi_svd_plugin.simulator.program.tracer import tracer


def need(view: Any, api: str, name: str, *buffers: str) -> View:
    """The operand, once it is a tensor in one of the given memories and its first axis is the partition axis."""
    if not isinstance(view, View):
        fail(f"{api}: operand '{name}' must be a tensor, found {type(view).__name__}")
    where = "hbm" if view.buffer == "shared_hbm" else view.buffer
    if where not in buffers:
        fail(f"{api}: operand '{name}' must be in {' or '.join(buffers)}, found in {where} (err_unsupported_memory)")
    if view.blocks:
        fail(
            f"{api}: operand '{name}' still has block dimensions; index them "
            f"(err_leading_dimension_of_tensor_must_be_partition)"
        )
    return view


def check_read(instr: Instr, operand: Operand) -> None:
    """Checks of a source; its mask and its bounds become the instruction's."""
    view = operand.view
    if view.base.block.closed:
        fail(
            f"{instr.op} reads {view!r}, created inside a loop that has ended (err_local_variable_used_out_of_scope); "
            "create it before the loop"
        )
    _check_limits(instr, view)
    if view.mask is not None:
        add_mask(instr, view.mask, operand.axes)
    _add_checks(instr, operand)


def check_write(instr: Instr) -> None:
    """Checks of the destination; also run again when an assignment moves a result to another tensor."""
    view = instr.write.view
    if not view.base.mutable:
        fail(f"{instr.op} writes a kernel input; inputs are read-only (err_cannot_update_immutable_parameter)")
    if view.base.block.closed:
        fail(f"{instr.op} writes {view!r}, created inside a loop that has ended (err_local_variable_used_out_of_scope)")
    _check_limits(instr, view)
    if view.mask is not None:
        add_mask(instr, view.mask, instr.write.axes)
    _add_checks(instr, instr.write)
    if instr.engine == "pe" and instr.info.get("product"):
        if view.dtype != np.float32:
            fail(f"{instr.op}: matmul results are fp32 in PSUM on NeuronCore-v2, found a {view.dtype} destination")
        if prod(view.shape[1:]) * 4 > PSUM_BANK_BYTES:
            fail(f"{instr.op}: the result takes more than one PSUM bank of {PSUM_BANK_BYTES} bytes per partition")
        _check_bank(instr, view)
    _check_dependence(instr, view)


def _check_bank(instr: Instr, view: View) -> None:
    """A matmul result may not straddle two PSUM banks."""
    bank = PSUM_BANK_BYTES // 4
    free = prod(view.base.shape[view.base.par + 1 :])
    extent = 1 + sum((n - 1) * step for n, step in zip(view.shape[1:], view.strides[1:], strict=True))
    starts = values_over_loops(view.offset, instr.block) % free % bank
    if free > bank and int(starts.max()) + extent > bank:
        fail(f"{instr.op}: the destination straddles two PSUM banks of {PSUM_BANK_BYTES} bytes per partition")


def _refuse_or_warn(message: str) -> None:
    """Other people's kernels (nki-samples' trilinear interpolation) leave it to the compiler to cut the instruction."""
    if tracer().strict:
        fail(message)
    tracer().warnings.append(message)


def _check_pattern(instr: Instr, view: View) -> None:
    """The engines walk the free axes of a tile by at most 4 counted steps, each of at most 32767 elements."""
    axes: list[tuple[int, int]] = []
    for count, step in zip(view.shape[1:], view.strides[1:], strict=True):
        if axes and axes[-1][1] == count * step:  # one step serves both axes
            axes[-1] = (axes[-1][0] * count, step)
        elif count > 1:
            axes.append((count, step))
    if len(axes) > ACCESS_AXES:
        _refuse_or_warn(
            f"{instr.op}: {view!r} is walked along {len(axes)} free axes, an access pattern has {ACCESS_AXES}"
        )
    if any(step > ACCESS_STRIDE for _, step in axes):
        fail(f"{instr.op}: a step of {max(s for _, s in axes)} elements, an access pattern has {ACCESS_STRIDE} (int16)")


def _check_limits(instr: Instr, view: View) -> None:
    if not view.base.on_chip or instr.engine == "dma" or instr.info.get("split"):
        return
    if instr.engine == "gpsimd" and view.buffer == "psum":
        fail(f"{instr.op}: the GpSimd Engine cannot access PSUM")
    _check_pattern(instr, view)
    partitions, free = view.shape[0], prod(view.shape[1:])
    limit = ENGINE_ELEMENTS[view.buffer]
    if free > limit:
        fail(f"{instr.op}: {free} elements per partition in {view.buffer}, the engines take at most {limit}")
    grain = 128 if partitions > 64 else 64 if partitions > 32 else 32
    if any(value % grain for value in (view.start.const, *view.start.terms.values())):
        starts = {128: "0", 64: "0 or 64", 32: "0, 32, 64 or 96"}[grain]
        fail(f"{instr.op}: {partitions} partitions must start at partition {starts}, found start {view.start.const}")


def _check_dependence(instr: Instr, view: View) -> None:
    """Iterations of affine loops and instances of a grid must write different memory, unless they accumulate."""
    if instr.accumulate or instr.info.get("inplace") or view.indirect:
        return
    used = view.offset.variables() | {var for term in instr.mask for var in term.variables()}
    used = used | instr.info.get("over", set())
    outside = set(view.base.block.loops())
    for loop in instr.block.loops():
        if loop.shuffled and loop.var and loop not in outside and len(loop.values) > 1 and loop.var not in used:
            fail(
                f"{instr.op} writes the same place of {view!r} in every iteration of an affine loop or grid "
                "(err_unexpected_output_dependencies): index it by the loop, create it inside "
                "the loop, or use sequential_range"
            )


def add_mask(instr: Instr, mask: Any, axes: Axes) -> None:
    """Bound the instruction by a mask on a tile whose axes run along these axes of the instruction."""
    if mask is None or mask is True:
        return
    if mask is False or isinstance(mask, np.bool_):
        mask = Condition([Expr(0 if mask else -1)])
    if not isinstance(mask, Condition):
        fail(f"{instr.op}: mask must be comparisons of indices joined by `&`, found {type(mask).__name__}")
    for term in mask.terms:
        if any(isinstance(atom, Quasi) for atom in term.terms):
            fail(f"{instr.op}: `%` and `//` in a mask are not affine (err_unsupported_expression_in_mask)")
        if len(term.axes()) > 1:
            fail(f"{instr.op}: a mask term that combines two tile axes is not simulated; bound each axis on its own")
        instr.mask.append(on_axes(instr, term, mask.ndim, axes))


def on_axes(instr: Instr, expr: Expr, ndim: int, axes: Axes) -> Expr:
    """Rewrite tile axes (counted from the right) as instruction axes."""
    terms: dict[Any, int] = {}
    for atom, coeff in expr.terms.items():
        if isinstance(atom, Axis):
            at = ndim - 1 - atom.position
            number = axes[at] if ndim == len(axes) else None
            if number is None or instr.space[number] != atom.size:
                fail(f"{instr.op}: the index of size {atom.size} belongs to no axis of the tile {list(instr.space)}")
            atom = Axis(number, atom.size)
        terms[atom] = terms.get(atom, 0) + coeff
    return Expr(expr.const, terms)


def _add_checks(instr: Instr, operand: Operand) -> None:
    view = operand.view
    for expr, size in view.checks:
        if not instr.mask:
            low, high = expr.bounds()
            fail(
                f"{instr.op}: index range {low}..{high} is out of bounds for a dimension of "
                f"{size}, and there is no mask"
            )
        instr.checks.append((on_axes(instr, expr, view.ndim, operand.axes), size))
