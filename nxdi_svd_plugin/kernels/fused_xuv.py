"""Y = X·U·V in one kernel: the intermediate (X·U)ᵀ stays in SBUF (paper section 4.2.1)."""

from typing import Any

from nxdi_svd_plugin.kernels import stages
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.tiling.blocks import stored_rows
from nxdi_svd_plugin.kernels.tiling.pieces import holding


def xuv_kernel(x: Any, u: Any, v: Any, transposed_output: bool = False, strip: tuple[int, ...] | None = None) -> Any:
    """X·U·V as [S, outputs], or transposed as [outputs, S].

    Args:
        x: HBM [S, inputs], bf16, fp16 or fp32; any S >= 1.
        u, v: HBM, `pack(u, v, kernel="xuv")` of u [inputs, R] and v [R, outputs]; same dtype as x.
        transposed_output: write [outputs, S].
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
    Returns: HBM tensor of x's dtype. Sums are fp32; X·U is rounded to x's dtype once, the output once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.

    For each strip: for each sub-strip: Xᵀ by tensor-engine transposes, T = Uᵀ·Xᵀ; then V once over the whole strip.
    """
    chain, blocks = planned("xuv", x, [u], [v], strip, transposed_output)
    shape = (chain.outputs, chain.tokens) if transposed_output else (chain.tokens, chain.outputs)
    out = nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm)
    identity = stages.fp32_identity(x)

    def one_strip(first: Any, sizes: tuple[int, ...]) -> None:
        ts: list[Any] = []
        holders, parts = holding(sizes, chain.token_align)
        for (start, tokens), part in zip(stages.sub_strips(first, sizes), parts, strict=True):
            xt = stages.load_rows_transposed(x, start, tokens, blocks.buffers, identity)
            stages.new_holders(ts, part, holders, chain.ranks[0], x.dtype)
            stages.project(u, xt, chain.inputs, blocks.buffers, ts, part)
        if transposed_output:
            factors = [(v, ts, chain.ranks[0])]
            rows = stored_rows(chain, blocks.buffers, sizes)
            stages.expand_transposed(factors, out, first, rows, blocks.buffers.v_tiles, _evict, False, chain.segments)
        else:
            stages.expand(v, ts, chain.ranks[0], out, first, 128, blocks.buffers)

    stages.for_strips(blocks.groups, one_strip)
    return out


def _evict(block: Any, sums: list[Any]) -> Any:
    return stages.copy_on_scalar(sums[0], block.dtype)


xuv = jit(xuv_kernel)
