"""The first half of the MLP: (silu(X·U_gate·V_gate) * (X·U_up·V_up))ᵀ in one kernel (paper Algorithm 3)."""

from typing import Any

from nxdi_svd_plugin.kernels import stages
from nxdi_svd_plugin.kernels.checks import planned
from nxdi_svd_plugin.kernels.nki import jit, nisa, nl
from nxdi_svd_plugin.kernels.packing import interleaved
from nxdi_svd_plugin.kernels.tiling.blocks import stored_rows
from nxdi_svd_plugin.kernels.tiling.pieces import holding
from nxdi_svd_plugin.stored.runs import Runs


def up_gate_kernel(
    x: Any,
    u_gate: Any,
    v_gate: Any,
    u_up: Any,
    v_up: Any,
    strip: tuple[int, ...] | None = None,
    pivots: tuple[Runs, Runs] = ((), ()),
) -> Any:
    """SwiGLU of two low-rank projections, written transposed, [I, S], as `down` reads it.

    Args:
        x: HBM [S, H], bf16, fp16 or fp32; any S >= 1. It is read, and transposed, once for both projections.
        u_gate, v_gate, u_up, v_up: HBM, `pack(u, v, kernel="up_gate")` of each pair; the two ranks may differ.
        strip: sub-strip token counts of one strip; chosen by kernels/tiling from the shapes if None.
        pivots: of gate and of up: runs of 128-row tiles of I that are the identity block of V = [I | C], the first tile
            of them made by the first 128 columns of the rank; v is then C, packed with `interpolative=True`, and the
            rows of the result are in kernel order (kernels/packing.py).
    Returns: HBM [I, S] of x's dtype. SiLU (scalar engine) and the product (vector engine) take fp32 sums out of PSUM;
        X·U is rounded once, the result once.
    Raises KernelError if shapes or dtypes do not fit together or nothing fits into SBUF.
    """
    chain, blocks = planned("up_gate", x, [u_gate, u_up], [v_gate, v_up], strip, pivots=pivots)
    out = nl.ndarray((chain.outputs, chain.tokens), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = stages.fp32_identity(x)
    bias = nl.zeros((128, 1), dtype=nl.float32, buffer=nl.sbuf)

    def swiglu(block: Any, sums: list[Any]) -> Any:
        gate, up = sums
        gated = nisa.activation(op=nl.silu, data=gate, bias=bias[0 : gate.shape[0], 0:1], dtype=nl.float32)
        return nisa.tensor_tensor(gated, up, op=nl.multiply, dtype=block.dtype)

    def one_strip(first: Any, sizes: tuple[int, ...]) -> None:
        gates: list[Any] = []
        ups: list[Any] = []
        holders, parts = holding(sizes, chain.token_align)
        for (start, tokens), part in zip(stages.sub_strips(first, sizes), parts, strict=True):
            xt = stages.load_rows_transposed(x, start, tokens, blocks.buffers, identity)
            for u, ts, rank in ((u_gate, gates, chain.ranks[0]), (u_up, ups, chain.ranks[1])):
                stages.new_holders(ts, part, holders, rank, x.dtype)
                stages.project(u, xt, chain.inputs, blocks.buffers, ts, part)
        factors = [(v_gate, gates, chain.ranks[0]), (v_up, ups, chain.ranks[1])]
        interleave, segments = interleaved(chain.outputs), chain.segments
        rows = stored_rows(chain, blocks.buffers, sizes)
        stages.expand_transposed(factors, out, first, rows, blocks.buffers.v_tiles, swiglu, interleave, segments)

    stages.for_strips(blocks.groups, one_strip)
    return out


up_gate = jit(up_gate_kernel)
