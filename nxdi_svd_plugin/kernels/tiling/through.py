"""X·U·V as two matmuls in one kernel, with (X·U)ᵀ in HBM between them: less traffic where it is too large for SBUF.

Each matmul is blocked for least traffic, as the unfused baseline's are (kernels/tiling/dense.py), but reads X, U and V
as the fused kernels get them. Only the orientation differs: (X·U)ᵀ = Uᵀ·Xᵀ [R, S], then Y = Tᵀ·V or Yᵀ = Vᵀ·T.
"""

from dataclasses import dataclass
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import CLOCK_HZ, DMA_BYTES_PER_SECOND, PARTITIONS, SBUF_BUDGET, SBUF_BYTES, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import Output, Product, choose_dense, dense_hbm_bytes, dense_sbuf_bytes

DEPTHS = (8 * PARTITIONS, 4 * PARTITIONS, 3 * PARTITIONS)
"""Of one load beside sums in SBUF: runs of 2 KiB of a packed weight, of less where that saves a read."""


X_COLUMNS = 1024
"""Columns of the rows of X that are loaded at once to be transposed: runs of 2 KiB in 16 bits."""


@dataclass(frozen=True)
class Through:
    """The two matmuls."""

    first: Product
    second: Product


@lru_cache(maxsize=4096)
def through(chain: Chain) -> Through | None:
    """The matmuls of `chain`; None where it has no such form.

    That is: for one pair of factors, of one group, without pivots, with inputs and rank of whole tiles, since all loads
    are of whole tiles.
    """
    rank = chain.ranks[0]
    if chain.kind.pairs > 1 or chain.groups > 1 or any(chain.pivots) or chain.inputs % PARTITIONS or rank % PARTITIONS:
        return None
    s, reserve = chain.itemsize, SBUF_BYTES - SBUF_BUDGET
    x = "interleaved" if chain.transposed_input else "rows"
    try:
        plan = choose_dense(rank, chain.inputs, chain.tokens, s, PARTITIONS, DEPTHS, reserve + _x_rows_bytes(chain, 2))
        first = Product(rank, chain.inputs, chain.tokens, plan, "packed", x)
        if chain.writes_transposed:
            plan = choose_dense(chain.outputs, rank, chain.tokens, s, PARTITIONS, DEPTHS, reserve)
            return Through(first, Product(chain.outputs, rank, chain.tokens, plan, "packed", "plain"))
        width = chain.column_tile
        plan = choose_dense(chain.tokens, rank, chain.outputs, s, width, DEPTHS, reserve)
        return Through(first, Product(chain.tokens, rank, chain.outputs, plan, "plain", "packed", width))
    except KernelError:
        return None


def through_hbm_bytes(chain: Chain, plan: Through) -> tuple[int, int]:
    """HBM bytes (read, written), exactly as the simulator counts them."""
    moved = sum(dense_hbm_bytes(p.rows, p.deep, p.columns, chain.itemsize, p.plan) for p in (plan.first, plan.second))
    written = chain.itemsize * chain.tokens * (chain.ranks[0] + chain.outputs)
    identity = PARTITIONS * PARTITIONS * chain.itemsize if chain.needs_identity else 0
    return moved - written + identity, written


def through_sbuf_bytes(chain: Chain, plan: Through, in_flight: int = 1) -> int:
    """SBUF bytes per partition, rows of X that are transposed and fp32's identity included."""
    first, second = (dense_sbuf_bytes(p.deep, chain.itemsize, p.plan, in_flight) for p in (plan.first, plan.second))
    return max(first + _x_rows_bytes(chain, in_flight), second + (4 * PARTITIONS if chain.needs_identity else 0))


def _x_rows_bytes(chain: Chain, in_flight: int) -> int:
    """Rows of X that are transposed, and what fp32 needs for that."""
    if chain.transposed_input:
        return 0
    rows = in_flight * chain.itemsize * min(X_COLUMNS, chain.inputs)
    return rows + (4 * PARTITIONS if chain.needs_identity else 0)


def product_cycles(product: Product) -> int:
    """Tensor-engine cycles of the matmuls in 16 bits: max(min(64, stationary), moving) each."""
    rows, columns = _blocks(product)
    stationary = [width for block in rows for width in _widths(block, PARTITIONS)]
    moving = [width for block in columns for width in _widths(block, product.width)]
    return tiles(product.deep) * sum(max(min(64, m), n) for m in stationary for n in moving)


def _blocks(product: Product) -> tuple[list[int], list[int]]:
    plan = product.plan
    if isinstance(plan, Output):
        high, wide = plan.rows, plan.columns
    else:
        high, wide = (plan.block, plan.stream) if plan.keeps_x else (plan.stream, plan.block)
    return _widths(product.rows, high), _widths(product.columns, wide)


def _widths(extent: int, step: int) -> list[int]:
    return [step] * (extent // step) + ([extent % step] if extent % step else [])


def x_reads(plan: Through) -> int:
    """Times that X is read (and, where it comes as rows, transposed)."""
    first = plan.first.plan
    if isinstance(first, Output):
        return -(-plan.first.rows // first.rows)
    return -(-plan.first.rows // first.block) if first.keeps_x else 1


def through_transpose_cycles(chain: Chain, plan: Through) -> int:
    """Tensor-engine cycles of the transposes of X: max(rows, 64) for every 128 x 128 tile, twice that for fp32."""
    if chain.transposed_input:
        return 0
    tokens = [size for block in _blocks(plan.first)[1] for size in _widths(block, PARTITIONS)]
    passes = 2 if chain.itemsize == 4 else 1
    return passes * x_reads(plan) * chain.input_tiles * sum(max(size, 64) for size in tokens)


def through_seconds(chain: Chain, plan: Through) -> dict[str, float]:
    """Modelled busy seconds of the engines; see tiling/engines.py. Everything of both matmuls overlaps."""
    passes = 4 if chain.itemsize == 4 else 1
    cycles = passes * (product_cycles(plan.first) + product_cycles(plan.second)) + through_transpose_cycles(chain, plan)
    vector = 0 if chain.transposed_input else x_reads(plan) * chain.tokens * chain.input_tiles
    scalar = 0
    for product in (plan.first, plan.second):
        elements = tiles(product.rows) * product.columns
        summed = -(-product.deep // product.plan.depth) if isinstance(product.plan, Output) else 1
        vector += elements * (summed - 1)
        scalar += elements * (2 if isinstance(product.plan, Output) else 1)
    return {
        "tensor": cycles / CLOCK_HZ["pe"],
        "vector": vector / CLOCK_HZ["vector"],
        "scalar": scalar / CLOCK_HZ["scalar"],
        "dma": sum(through_hbm_bytes(chain, plan)) / DMA_BYTES_PER_SECOND,
    }
