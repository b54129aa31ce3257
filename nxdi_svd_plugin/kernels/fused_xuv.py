"""Y = X·U·V in one kernel: the intermediate (X·U)ᵀ stays in SBUF (paper section 4.2.1)."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.accumulate import accumulate
from nxdi_svd_plugin.kernels.stages.expand import expand
from nxdi_svd_plugin.kernels.stages.expand_transposed import expand_transposed
from nxdi_svd_plugin.kernels.stages.groups import groups_of
from nxdi_svd_plugin.kernels.stages.load import fp32_identity, load_rows_transposed
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.stages.through import through_hbm
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Step, Strip


def xuv_kernel(
    x: Any, u: Any, v: Any, transposed_output: bool = False, strip: tuple[int, ...] | None = None, split: int = 0
) -> Any:
    """X·U·V as [S, outputs], or transposed as [outputs, S].

    Args:
        x: HBM [S, inputs], bf16, fp16 or fp32; any S >= 1.
        u, v: HBM, `pack(u, v, kernel="xuv")` of u [inputs, R] and v [R, outputs]; same dtype as x.
        transposed_output: write [outputs, S].
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
        split: with a `strip` of one, input tiles of one block of a split contraction; 0 keeps all of the input.
    Returns: HBM tensor of x's dtype. Sums are fp32; X·U is rounded to x's dtype once, the output once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    dtypes = (str(x.dtype), str(u.dtype), str(v.dtype))
    plan = planned(
        "xuv", tuple(x.shape), (tuple(u.shape),), (tuple(v.shape),), dtypes, strip, transposed_output, (), split
    )
    shape = (plan.outputs, plan.tokens) if transposed_output else (plan.tokens, plan.outputs)
    out = nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm)
    identity = fp32_identity(x)
    if plan.through:
        through_hbm(out, x, u, v, plan.through, identity)
    else:
        _strips(out, x, u, v, plan, transposed_output, identity)
    return out


def _strips(out: Any, x: Any, u: Any, v: Any, plan: Schedule, transposed_output: bool, identity: Any) -> None:
    """All strips, one after the other: the plan gives all of SBUF to one."""
    for part in plan.strips:
        if part.count == 1:
            _strip(out, x, u, v, part.first, part, plan, transposed_output, identity)
        else:
            for i in nl.sequential_range(part.count):
                _strip(out, x, u, v, part.first + i * part.tokens, part, plan, transposed_output, identity)


def _strip(
    out: Any,
    x: Any,
    u: Any,
    v: Any,
    first: Any,
    strip: Strip,
    plan: Schedule,
    transposed_output: bool,
    identity: Any,
) -> None:
    """The tokens `first`... of one strip: T of the strip, then V once."""
    ts = []
    for size in strip.holders:
        for part in plan.parts[0]:
            ts.append(nl.ndarray((PARTITIONS, tiles(part.columns) * size), dtype=x.dtype, buffer=nl.sbuf))
    if plan.steps:
        _sum_blocks(ts, x, u, first, strip, plan, identity)
    else:
        _keep_rows(ts, x, u, first, strip, plan, identity)
    groups = []
    groups.append(ts)
    if transposed_output:
        expand_transposed(out, groups, groups_of(v), None, first, strip, plan)
    else:
        expand(out, groups, groups_of(v), first, strip, plan)


def _keep_rows(ts: list[Any], x: Any, u: Any, first: Any, strip: Strip, plan: Schedule, identity: Any) -> None:
    """T of every sub-strip, whose Xᵀ is kept while U is read."""
    for sub in strip.subs:
        xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=x.dtype, buffer=nl.sbuf)
        load_rows_transposed(xt, x, first + sub.start, sub.tokens, 0, plan.inputs, plan.x_columns, identity)
        project(ts, u, xt, sub.pieces, plan, plan.ranks[0])


def _sum_blocks(ts: list[Any], x: Any, u: Any, first: Any, strip: Strip, plan: Schedule, identity: Any) -> None:
    """T of the strip from fp32 sums, past which blocks of Xᵀ and U are streamed, each read once."""
    sums = []
    banks = []
    for part in plan.parts[0]:
        if part.summed:
            sums.append(nl.ndarray((PARTITIONS, part.summed * strip.tokens), dtype=nl.float32, buffer=nl.sbuf))
    for size in strip.banks:
        banks.append(nl.zeros((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum))
    for step in plan.steps:
        if step.count == 1:
            _add_block(ts, sums, banks, x, u, first, step.row, step, strip, plan, identity)
        else:
            for b in nl.sequential_range(step.count):
                row = step.row + b * tiles(step.rows)
                _add_block(ts, sums, banks, x, u, first, row, step, strip, plan, identity)


def _add_block(
    ts: list[Any],
    sums: list[Any],
    banks: list[Any],
    x: Any,
    u: Any,
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
    accumulate(ts, sums, banks, u, xt, None, row, first, step, plan.runs[0], strip, plan)


xuv = jit(xuv_kernel)
