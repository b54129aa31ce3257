"""The second half of the MLP: Y = H·U·V from Hᵀ as `up_gate` wrote it; nothing is transposed."""

from typing import Any

from nxdi_svd_plugin.kernels import stages
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.tiling.pieces import holding
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
    chain, blocks = planned("down", h_t, [u], [v], strip, pivots=(pivots,))
    out = nl.ndarray((chain.tokens, chain.outputs), dtype=h_t.dtype, buffer=nl.shared_hbm)
    rank = chain.ranks[0]

    def one_strip(first: Any, sizes: tuple[int, ...]) -> None:
        ts: list[Any] = []
        holders, parts = holding(sizes, chain.token_align)
        for (start, tokens), part in zip(stages.sub_strips(first, sizes), parts, strict=True):
            xt = stages.load_columns(h_t, start, tokens, chain.segments)
            stages.new_holders(ts, part, holders, chain.ranks[0], h_t.dtype)
            stages.project(u, xt, chain.u_rows, blocks.buffers, ts, part, chain.pivot_tiles[0])
        stages.expand(v, ts, rank, out, first, chain.column_tile, blocks.buffers)

    stages.for_strips(blocks.groups, one_strip)
    return out


down = jit(down_kernel)
