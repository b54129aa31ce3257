"""X·U·V as two matmuls in one kernel, with (X·U)ᵀ in HBM between them: less traffic where it is too large for SBUF.

Each matmul is blocked as the unfused baseline's are (kernels/tiling/dense.py), but reads X, U and V as the fused
kernels get them. Only the orientation differs: (X·U)ᵀ = Uᵀ·Xᵀ [R, S], then Y = Tᵀ·V or Yᵀ = Vᵀ·T.
"""

from dataclasses import dataclass
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BUDGET, SBUF_BYTES
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import X_COLUMNS, Product, dense_hbm_bytes, dense_plans, dense_sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.product_work import add_product
from nxdi_svd_plugin.kernels.tiling.work import Work

DEPTHS = (8 * PARTITIONS, 4 * PARTITIONS, 3 * PARTITIONS)
"""Of one load beside sums in SBUF: runs of 2 KiB of a packed weight, of less where that saves a read."""


@dataclass(frozen=True)
class Through:
    """The two matmuls."""

    first: Product
    second: Product


@lru_cache(maxsize=4096)
def through_plans(chain: Chain) -> tuple[Through, ...]:
    """The matmuls of `chain` in every pair of blocks of which none is both faster and moves less; () for no such form.

    There is one for a pair of factors, of one group, without pivots, with inputs and rank of whole tiles, since all
    loads are of whole tiles.
    """
    rank = chain.ranks[0]
    if chain.kind.pairs > 1 or chain.groups > 1 or any(chain.pivots) or chain.inputs % PARTITIONS or rank % PARTITIONS:
        return ()
    x = "interleaved" if chain.transposed_input else "rows"
    first = _products(chain, (rank, chain.inputs, chain.tokens), "packed", x, MOVING, _x_rows_bytes(chain, 2))
    if chain.writes_transposed:
        second = _products(chain, (chain.outputs, rank, chain.tokens), "packed", "plain", MOVING)
    else:
        second = _products(chain, (chain.tokens, rank, chain.outputs), "plain", "packed", chain.column_tile)
    return tuple(Through(one, other) for one in first for other in second)


def _products(chain: Chain, shape: tuple[int, int, int], x: str, w: str, width: int, taken: int = 0) -> list[Product]:
    """One of the two matmuls, [rows, deep, columns], with `taken` bytes of SBUF for something else; [] if none fits."""
    step = width if w == "packed" else PARTITIONS
    try:
        plans = dense_plans(*shape, chain.itemsize, step, DEPTHS, SBUF_BYTES - SBUF_BUDGET + taken)
    except KernelError:
        return []
    costs = {}
    for plan in plans:
        work = Work(chain.itemsize)
        add_product(work, Product(*shape, plan, x, w, width))
        costs[plan] = (dense_hbm_bytes(*shape, chain.itemsize, plan), max(work.seconds.values()))
    found: list[Product] = []
    fastest = float("inf")
    for plan in sorted(plans, key=costs.__getitem__):
        if costs[plan][1] < fastest:
            fastest = costs[plan][1]
            found.append(Product(*shape, plan, x, w, width))
    return found


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
