"""The second half of the MLP: Y = H·U·V from Hᵀ as `up_gate` wrote it; nothing is transposed."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.expand import expand
from nxdi_svd_plugin.kernels.stages.load import load_columns
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Strip
from nxdi_svd_plugin.stored.runs import Runs


def down_kernel(h_t: Any, u: Any, v: Any, strip: tuple[int, ...] | None = None, pivots: Runs = ()) -> Any:
    """H·U·V as [S, H] from h_t [I, S].

    Args:
        h_t: HBM [I, S], bf16, fp16 or fp32; any S >= 1.
        u, v: HBM, `pack(u, v, kernel="down")` of u [I, R] and v [R, H]; same dtype as h_t.
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
        pivots: runs of 128-row tiles of I that are the identity block of U = [I ; C], the first tile of them for the
            first 128 columns of the rank; u is then C, packed with `interpolative=True`, and I in kernel order.
    Returns: HBM [S, H] of h_t's dtype. Sums are fp32; H·U is rounded once, the output once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    dtypes = (str(h_t.dtype), str(u.dtype), str(v.dtype))
    plan = planned("down", tuple(h_t.shape), (tuple(u.shape),), (tuple(v.shape),), dtypes, strip, False, (pivots,))
    out = nl.ndarray((plan.tokens, plan.outputs), dtype=h_t.dtype, buffer=nl.shared_hbm)
    for part in plan.strips:
        if part.count == 1:
            _strip(out, h_t, u, v, part.first, part, plan)
        else:
            for i in nl.sequential_range(part.count):
                _strip(out, h_t, u, v, part.first + i * part.tokens, part, plan)
    return out


def _strip(out: Any, h_t: Any, u: Any, v: Any, first: Any, strip: Strip, plan: Schedule) -> None:
    """Rows `first`... of the output: T of every sub-strip, with U read once for each, then V once."""
    rank = plan.ranks[0]
    ts = []
    for size in strip.holders:
        ts.append(nl.ndarray((PARTITIONS, tiles(rank) * size), dtype=h_t.dtype, buffer=nl.sbuf))
    for sub in strip.subs:
        xt = nl.ndarray((PARTITIONS, plan.input_tiles * sub.tokens), dtype=h_t.dtype, buffer=nl.sbuf)
        load_columns(xt, h_t, first + sub.start, sub.tokens, plan)
        project(ts, u, xt, sub.pieces, plan, rank, plan.pivots)
    expand(out, ts, v, first, strip, plan)


down = jit(down_kernel)
