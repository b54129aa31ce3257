"""The first half of the MLP: (silu(X·U_gate·V_gate) * (X·U_up·V_up))ᵀ in one kernel (paper Algorithm 3)."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned_groups
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.accumulate import accumulate
from nxdi_svd_plugin.kernels.stages.expand_transposed import expand_transposed
from nxdi_svd_plugin.kernels.stages.groups import both, dtypes_of, groups_of, shapes_of
from nxdi_svd_plugin.kernels.stages.load import fp32_identity, load_rows_transposed
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.stages.through import load_strip, product_in_hbm
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Step, Strip
from nxdi_svd_plugin.stored.runs import Runs


def up_gate_kernel(
    x: Any,
    u_gate: Any,
    v_gate: Any,
    u_up: Any,
    v_up: Any,
    strip: tuple[int, ...] | None = None,
    pivots: tuple[Runs, Runs] = ((), ()),
    split: int = 0,
) -> Any:
    """SwiGLU of two low-rank projections, written transposed, [I, S], as `down` reads it.

    Args:
        x: HBM [S, H], bf16, fp16 or fp32; any S >= 1. It is read, and transposed, once for both projections.
        u_gate, v_gate, u_up, v_up: HBM, `pack(u, v, kernel="up_gate")` of each pair; the two ranks may differ.
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
        split: with a `strip` of one, input tiles of one block of a split contraction; 0 keeps all of the input.
        pivots: of gate and of up: runs of 128-row tiles of I that are the identity block of V = [I | C], the first tile
            of them made by the first 128 columns of the rank; v is then C, packed with `interpolative=True`, and the
            rows of the result are in kernel order (kernels/packing.py).
    For several groups the four factors are lists with a tensor a group, of the same shapes in all; Xᵀ stays in SBUF
    while the groups take turns.
    Returns: HBM [I, S] of x's dtype; a tuple with one for each group if there are lists. SiLU (scalar engine) and the
        product (vector engine) take fp32 sums out of PSUM; X·U is rounded once, the result once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    us_gate, vs_gate, us_up, vs_up = groups_of(u_gate), groups_of(v_gate), groups_of(u_up), groups_of(v_up)
    factors = shapes_of(us_gate), shapes_of(vs_gate), shapes_of(us_up), shapes_of(vs_up)
    dtypes = dtypes_of((groups_of(x), us_gate, vs_gate, us_up, vs_up))
    plan = planned_groups("up_gate", shapes_of(groups_of(x)), factors, dtypes, strip, pivots, split)
    outs = []
    for u in us_gate:
        outs.append(nl.ndarray((plan.outputs, plan.tokens), dtype=u.dtype, buffer=nl.shared_hbm))
    identity = fp32_identity(x)
    bias = nl.zeros((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    if plan.through:
        _refill_strips(outs[0], x, us_gate[0], vs_gate[0], us_up[0], vs_up[0], plan, identity, bias)
    else:
        _strips(outs, x, us_gate, vs_gate, us_up, vs_up, plan, identity, bias)
    return tuple(outs) if isinstance(u_gate, list) else outs[0]


def _refill_strips(
    out: Any, x: Any, u_gate: Any, v_gate: Any, u_up: Any, v_up: Any, plan: Schedule, identity: Any, bias: Any
) -> None:
    """Both T of all tokens to HBM, then both V once for every strip of them."""
    gate = product_in_hbm(x, u_gate, plan.through[0], identity)
    up = product_in_hbm(x, u_up, plan.through[1], identity)
    for part in plan.strips:
        for i in nl.sequential_range(part.count):
            first = part.first + i * part.tokens
            gates = []
            ups = []
            gates.append(load_strip(gate, first, part.tokens))
            ups.append(load_strip(up, first, part.tokens))
            expand_transposed(out, both(gates, ups), both(v_gate, v_up), bias, first, part, plan)


def _strips(
    outs: list[Any],
    x: Any,
    us_gate: list[Any],
    vs_gate: list[Any],
    us_up: list[Any],
    vs_up: list[Any],
    plan: Schedule,
    identity: Any,
    bias: Any,
) -> None:
    """All strips, one after the other: the plan gives all of SBUF to one."""
    for part in plan.strips:
        if part.count == 1:
            _strip(outs, x, us_gate, vs_gate, us_up, vs_up, part.first, part, plan, identity, bias)
        else:
            for i in nl.sequential_range(part.count):
                first = part.first + i * part.tokens
                _strip(outs, x, us_gate, vs_gate, us_up, vs_up, first, part, plan, identity, bias)


def _strip(
    outs: list[Any],
    x: Any,
    us_gate: list[Any],
    vs_gate: list[Any],
    us_up: list[Any],
    vs_up: list[Any],
    first: Any,
    strip: Strip,
    plan: Schedule,
    identity: Any,
    bias: Any,
) -> None:
    """Columns `first`... of every output."""
    if len(outs) > 1:
        _take_turns(outs, x, us_gate, vs_gate, us_up, vs_up, first, strip, plan, identity, bias)
    else:
        _one_group(outs[0], x, us_gate[0], vs_gate[0], us_up[0], vs_up[0], first, strip, plan, identity, bias)


def _take_turns(
    outs: list[Any],
    x: Any,
    us_gate: list[Any],
    vs_gate: list[Any],
    us_up: list[Any],
    vs_up: list[Any],
    first: Any,
    strip: Strip,
    plan: Schedule,
    identity: Any,
    bias: Any,
) -> None:
    """Group after group from the one Xᵀ of the strip, which has one sub-strip: both T, then both V once."""
    sub = strip.subs[0]
    xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=x.dtype, buffer=nl.sbuf)
    load_rows_transposed(xt, x, first, sub.tokens, 0, plan.inputs, plan.x_columns, identity)
    for g, out in enumerate(outs):
        gates = []
        ups = []
        gates.append(nl.ndarray((PARTITIONS, tiles(plan.ranks[0]) * sub.tokens), dtype=x.dtype, buffer=nl.sbuf))
        ups.append(nl.ndarray((PARTITIONS, tiles(plan.ranks[1]) * sub.tokens), dtype=x.dtype, buffer=nl.sbuf))
        project(gates, us_gate[g], xt, sub.pieces, plan, plan.ranks[0])
        project(ups, us_up[g], xt, sub.pieces, plan, plan.ranks[1])
        expand_transposed(out, both(gates, ups), both(vs_gate[g], vs_up[g]), bias, first, strip, plan)


def _one_group(
    out: Any,
    x: Any,
    u_gate: Any,
    v_gate: Any,
    u_up: Any,
    v_up: Any,
    first: Any,
    strip: Strip,
    plan: Schedule,
    identity: Any,
    bias: Any,
) -> None:
    """Columns `first`... of the output: both T of the strip from one Xᵀ, then both V once."""
    gates = []
    ups = []
    for size in strip.holders:
        for part in plan.parts[0]:
            gates.append(nl.ndarray((PARTITIONS, tiles(part.columns) * size), dtype=x.dtype, buffer=nl.sbuf))
        for part in plan.parts[1]:
            ups.append(nl.ndarray((PARTITIONS, tiles(part.columns) * size), dtype=x.dtype, buffer=nl.sbuf))
    if plan.steps:
        _sum_blocks(gates, ups, x, u_gate, u_up, first, strip, plan, identity)
    else:
        _keep_rows(gates, ups, x, u_gate, u_up, first, strip, plan, identity)
    expand_transposed(out, both(gates, ups), both(v_gate, v_up), bias, first, strip, plan)


def _keep_rows(
    gates: list[Any],
    ups: list[Any],
    x: Any,
    u_gate: Any,
    u_up: Any,
    first: Any,
    strip: Strip,
    plan: Schedule,
    identity: Any,
) -> None:
    """Both T of every sub-strip, whose Xᵀ is kept while both U are read."""
    for sub in strip.subs:
        xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=x.dtype, buffer=nl.sbuf)
        load_rows_transposed(xt, x, first + sub.start, sub.tokens, 0, plan.inputs, plan.x_columns, identity)
        project(gates, u_gate, xt, sub.pieces, plan, plan.ranks[0])
        project(ups, u_up, xt, sub.pieces, plan, plan.ranks[1])


def _sum_blocks(
    gates: list[Any],
    ups: list[Any],
    x: Any,
    u_gate: Any,
    u_up: Any,
    first: Any,
    strip: Strip,
    plan: Schedule,
    identity: Any,
) -> None:
    """Both T of the strip from fp32 sums, past which blocks of Xᵀ and of both U are streamed, each read once."""
    gate_sums = []
    up_sums = []
    banks = []
    for part in plan.parts[0]:
        gate_sums.append(nl.ndarray((PARTITIONS, part.summed * strip.tokens), dtype=nl.float32, buffer=nl.sbuf))
    for part in plan.parts[1]:
        if part.summed:
            up_sums.append(nl.ndarray((PARTITIONS, part.summed * strip.tokens), dtype=nl.float32, buffer=nl.sbuf))
    for size in strip.banks:
        banks.append(nl.zeros((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum))
    for step in plan.steps:
        if step.count == 1:
            row = step.row
            _add_block(gates, ups, gate_sums, up_sums, banks, x, u_gate, u_up, first, row, step, strip, plan, identity)
        else:
            for b in nl.sequential_range(step.count):
                row = step.row + b * tiles(step.rows)
                _add_block(
                    gates, ups, gate_sums, up_sums, banks, x, u_gate, u_up, first, row, step, strip, plan, identity
                )


def _add_block(
    gates: list[Any],
    ups: list[Any],
    gate_sums: list[Any],
    up_sums: list[Any],
    banks: list[Any],
    x: Any,
    u_gate: Any,
    u_up: Any,
    first: Any,
    row: Any,
    step: Step,
    strip: Strip,
    plan: Schedule,
    identity: Any,
) -> None:
    """The block of input tiles `row`..."""
    xt = nl.ndarray((PARTITIONS, tiles(step.rows) * strip.tokens), dtype=x.dtype, buffer=nl.sbuf)
    load_rows_transposed(xt, x, first, strip.tokens, row * PARTITIONS, step.rows, plan.x_columns, identity)
    accumulate(gates, gate_sums, [], u_gate, xt, None, row, first, step, plan.runs[0], strip, plan)
    accumulate(ups, up_sums, banks, u_up, xt, None, row, first, step, plan.runs[1], strip, plan)


up_gate = jit(up_gate_kernel)
