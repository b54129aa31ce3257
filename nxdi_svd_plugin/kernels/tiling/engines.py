"""Busy time of every engine for a planned chain: a model by AWS's cost formulas (nki.isa of SDK 2.26.1)."""

from nxdi_svd_plugin.hardware import CLOCK_HZ, DMA_BYTES_PER_SECOND, MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.blocks import Plan, hbm_bytes, sum_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.pieces import holding, spans
from nxdi_svd_plugin.kernels.tiling.through import (
    Through,
    product_cycles,
    through_seconds,
    through_transpose_cycles,
)


def minimum_pe_cycles(chain: Chain) -> float:
    """Tensor-engine cycles of the chain's FLOPs alone at full use of the 128 x 128 array."""
    return chain.flops / (2 * PARTITIONS * PARTITIONS) * _passes(chain)


def matmul_cycles(chain: Chain, blocks: Plan) -> int:
    """Tensor-engine cycles of the matmuls: max(min(64, stationary width), moving width) each, four passes for fp32."""
    if isinstance(blocks, Through):
        return _passes(chain) * (product_cycles(blocks.first) + product_cycles(blocks.second))
    cycles = 0
    for count, strip in blocks.groups:
        sizes, pieces = holding(strip, chain.token_align)
        cycles += (
            count * chain.groups * sum(_projection_cycles(chain, piece.tokens) for part in pieces for piece in part)
        )
        cycles += count * chain.turns * sum(_expansion_cycles(chain, size) for size in sizes)
    return cycles * _passes(chain)


def _projection_cycles(chain: Chain, size: int) -> int:
    """Cycles of `size` tokens in the first phase."""
    moving = [width for _, width in spans(size, MOVING)]
    return tiles(chain.u_rows) * sum(_pass(width, n) for rank in chain.ranks for width in _widths(rank) for n in moving)


def _expansion_cycles(chain: Chain, size: int) -> int:
    """Cycles of `size` tokens of (X·U)ᵀ in the second phase."""
    if chain.writes_transposed:
        moving = [width for _, width in spans(size, MOVING)]
        return sum(
            tiles(rank) * _pass(width, n)
            for rank, extent in zip(chain.ranks, chain.v_columns, strict=True)
            for width in _widths(extent)
            for n in moving
        )
    columns = _widths(chain.outputs, chain.column_tile)
    return chain.rank_tiles * sum(_pass(width, n) for width in _widths(size) for n in columns)


def _pass(stationary: int, moving: int) -> int:
    return max(min(64, stationary), moving)


def _widths(extent: int, step: int = PARTITIONS) -> list[int]:
    return [step] * (extent // step) + ([extent % step] if extent % step else [])


def transpose_cycles(chain: Chain, blocks: Plan) -> int:
    """Tensor-engine cycles of the transposes of X, read once: max(rows, min(64, columns)) for each 128 x 128 tile.

    fp32 goes by a matmul with 0/1 entries, which takes two passes.
    """
    if isinstance(blocks, Through):
        return through_transpose_cycles(chain, blocks)
    if chain.transposed_input:
        return 0
    full, tail = divmod(chain.inputs, PARTITIONS)
    cycles = 0
    for count, strip in blocks.groups:
        for size in strip:
            for start in range(0, size, PARTITIONS):
                rows = min(PARTITIONS, size - start)
                cycles += count * (full * max(rows, 64) + (max(rows, min(64, tail)) if tail else 0))
    return cycles * (2 if chain.itemsize == 4 else 1)


def _passes(chain: Chain) -> int:
    return 4 if chain.itemsize == 4 else 1


def engine_seconds(chain: Chain, blocks: Plan) -> dict[str, float]:
    """Modelled busy seconds of the tensor, vector and scalar engines and of DMA for one call.

    The vector engine evicts (X·U)ᵀ and Xᵀ and multiplies gate by up; the scalar engine evicts the output or does SiLU.
    Where the contraction is split, the scalar engine copies the first block's products, the vector engine adds others.
    """
    if isinstance(blocks, Through):
        return through_seconds(chain, blocks)
    columns = chain.tokens * (chain.turns * chain.rank_tiles + (0 if chain.transposed_input else chain.input_tiles))
    output = chain.turns * chain.outputs * chain.tokens / PARTITIONS
    vector = columns + (output if chain.kind.swiglu else 0)
    scalar = output
    if blocks.buffers.split:  # one of the additions makes (X·U)ᵀ, which is counted; the first block is a copy
        vector += chain.tokens * chain.rank_tiles * (sum_blocks(chain, blocks.buffers.split) - 2)
        scalar += chain.tokens * chain.rank_tiles
    return {
        "tensor": (matmul_cycles(chain, blocks) + transpose_cycles(chain, blocks)) / CLOCK_HZ["pe"],
        "vector": vector / CLOCK_HZ["vector"],
        "scalar": scalar / CLOCK_HZ["scalar"],
        "dma": sum(hbm_bytes(chain, blocks)) / DMA_BYTES_PER_SECOND,
    }
