"""Y = X·U·V in one kernel: the intermediate (X·U)ᵀ stays in SBUF (paper section 4.2.1)."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.expand import expand, expand_transposed
from nxdi_svd_plugin.kernels.stages.load import fp32_identity, load_rows_transposed
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Strip


def xuv_kernel(x: Any, u: Any, v: Any, transposed_output: bool = False, strip: tuple[int, ...] | None = None) -> Any:
    """X·U·V as [S, outputs], or transposed as [outputs, S].

    Args:
        x: HBM [S, inputs], bf16, fp16 or fp32; any S >= 1.
        u, v: HBM, `pack(u, v, kernel="xuv")` of u [inputs, R] and v [R, outputs]; same dtype as x.
        transposed_output: write [outputs, S].
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
    Returns: HBM tensor of x's dtype. Sums are fp32; X·U is rounded to x's dtype once, the output once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    dtypes = (str(x.dtype), str(u.dtype), str(v.dtype))
    plan = planned("xuv", tuple(x.shape), (tuple(u.shape),), (tuple(v.shape),), dtypes, strip, transposed_output)
    shape = (plan.outputs, plan.tokens) if transposed_output else (plan.tokens, plan.outputs)
    out = nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm)
    identity = fp32_identity(x)
    for part in plan.strips:
        if part.count == 1:
            _strip(out, x, u, v, part.first, part, plan, transposed_output, identity)
        else:
            for i in nl.sequential_range(part.count):
                _strip(out, x, u, v, part.first + i * part.tokens, part, plan, transposed_output, identity)
    return out


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
    """The tokens `first`... of one strip: T of every sub-strip, with U read once for each, then V once."""
    rank = plan.ranks[0]
    ts = []
    for size in strip.holders:
        ts.append(nl.ndarray((PARTITIONS, tiles(rank) * size), dtype=x.dtype, buffer=nl.sbuf))
    for sub in strip.subs:
        xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=x.dtype, buffer=nl.sbuf)
        load_rows_transposed(xt, x, first + sub.start, sub.tokens, 0, plan.inputs, plan.x_columns, identity)
        project(ts, u, xt, sub.pieces, plan, rank)
    if transposed_output:
        expand_transposed(out, ts, v, first, strip, plan)
    else:
        expand(out, ts, v, first, strip, plan)


xuv = jit(xuv_kernel)
