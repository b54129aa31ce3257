"""The second half of the MLP: Y = H·U·V from Hᵀ as `up_gate` wrote it; nothing is transposed."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned_groups
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.accumulate import accumulate
from nxdi_svd_plugin.kernels.stages.expand import expand
from nxdi_svd_plugin.kernels.stages.groups import dtypes_of, groups_of, shapes_of
from nxdi_svd_plugin.kernels.stages.load import load_columns, load_tiles
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.stages.through import through_hbm
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Step, Strip
from nxdi_svd_plugin.stored.runs import Runs


def down_kernel(
    h_t: Any, u: Any, v: Any, strip: tuple[int, ...] | None = None, pivots: Runs = (), split: int = 0
) -> Any:
    """H·U·V as [S, H] from h_t [I, S].

    Args:
        h_t: HBM [I, S], bf16, fp16 or fp32; any S >= 1.
        u, v: HBM, `pack(u, v, kernel="down")` of u [I, R] and v [R, H]; same dtype as h_t.
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
        split: with a `strip` of one, input tiles of one block of a split contraction; 0 keeps all of the input.
        pivots: runs of 128-row tiles of I that are the identity block of U = [I ; C], the first tile of them for the
            first 128 columns of the rank; u is then C, packed with `interpolative=True`, and I in kernel order.
    For several groups h_t, u and v are lists with a tensor a group, of the same shapes in all; the groups' outputs are
    summed in PSUM.
    Returns: HBM [S, H] of h_t's dtype. Sums are fp32; H·U is rounded once, the output once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    hs, us, vs = groups_of(h_t), groups_of(u), groups_of(v)
    factors = shapes_of(us), shapes_of(vs)
    plan = planned_groups("down", shapes_of(hs), factors, dtypes_of((hs, us, vs)), strip, (pivots,), split)
    out = nl.ndarray((plan.tokens, plan.outputs), dtype=hs[0].dtype, buffer=nl.shared_hbm)
    if plan.through:
        through_hbm(out, hs[0], us[0], vs[0], plan.through, None)
    else:
        _strips(out, hs, us, vs, plan)
    return out


def _strips(out: Any, hs: list[Any], us: list[Any], vs: list[Any], plan: Schedule) -> None:
    """All strips, one after the other: the plan gives all of SBUF to one."""
    for part in plan.strips:
        if part.count == 1:
            _strip(out, hs, us, vs, part.first, part, plan)
        else:
            for i in nl.sequential_range(part.count):
                _strip(out, hs, us, vs, part.first + i * part.tokens, part, plan)


def _strip(out: Any, hs: list[Any], us: list[Any], vs: list[Any], first: Any, strip: Strip, plan: Schedule) -> None:
    """Rows `first`... of the output: T of the strip for every group, then each V once."""
    groups = []
    for h_t in hs:
        ts = []
        for size in strip.holders:
            for part in plan.parts[0]:
                ts.append(nl.ndarray((PARTITIONS, tiles(part.columns) * size), dtype=h_t.dtype, buffer=nl.sbuf))
        groups.append(ts)
    if plan.steps:
        _sum_blocks(groups[0], hs[0], us[0], first, strip, plan)
    else:
        _keep_columns(groups, hs, us, first, strip, plan)
    expand(out, groups, vs, first, strip, plan)


def _keep_columns(
    groups: list[list[Any]], hs: list[Any], us: list[Any], first: Any, strip: Strip, plan: Schedule
) -> None:
    """T of every sub-strip, whose Hᵀ is kept while U is read, a group after the other."""
    for sub in strip.subs:
        for g, h_t in enumerate(hs):
            xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=h_t.dtype, buffer=nl.sbuf)
            load_columns(xt, h_t, first + sub.start, sub.tokens, plan)
            project(groups[g], us[g], xt, sub.pieces, plan, plan.ranks[0], plan.pivots)


def _sum_blocks(ts: list[Any], h_t: Any, u: Any, first: Any, strip: Strip, plan: Schedule) -> None:
    """T of the strip from fp32 sums, past which blocks of Hᵀ and U are streamed, each read once."""
    rows = h_t.reshape((PARTITIONS, plan.input_tiles * plan.tokens))
    sums = []
    banks = []
    for part in plan.parts[0]:
        if part.summed:
            sums.append(nl.ndarray((PARTITIONS, part.summed * strip.tokens), dtype=nl.float32, buffer=nl.sbuf))
    for size in strip.banks:
        banks.append(nl.zeros((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum))
    for step in plan.steps:
        if step.count == 1:
            _add_block(ts, sums, banks, h_t, rows, u, first, 0, step, strip, plan)
        else:
            for b in nl.sequential_range(step.count):
                _add_block(ts, sums, banks, h_t, rows, u, first, b * tiles(step.rows), step, strip, plan)


def _add_block(
    ts: list[Any],
    sums: list[Any],
    banks: list[Any],
    h_t: Any,
    rows: Any,
    u: Any,
    first: Any,
    done: Any,
    step: Step,
    strip: Strip,
    plan: Schedule,
) -> None:
    """The block `done` tiles after the first of its step."""
    count = tiles(step.rows)
    xt = nl.ndarray((PARTITIONS, count * strip.tokens), dtype=h_t.dtype, buffer=nl.sbuf)
    load_tiles(xt, rows, step.source + done, 0, count, first, strip.tokens, plan.tokens, plan.h_tiles)
    accumulate(ts, sums, banks, u, xt, rows, step.row + done, first, step, plan.runs[0], strip, plan)


down = jit(down_kernel)
