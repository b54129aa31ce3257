"""X·U·V as two matmuls in one kernel, with (X·U)ᵀ in HBM between them: less traffic where it is too large for SBUF.

Each matmul is blocked as the unfused baseline's are (kernels/tiling/dense.py), but reads X, U and V as the fused
kernels get them. Only the orientation differs: (X·U)ᵀ = Uᵀ·Xᵀ [R, S], then Y = Tᵀ·V or Yᵀ = Vᵀ·T. The pivots of an
interpolative `down` are added to their rows of (X·U)ᵀ as these are rounded, each read once.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from nxdi_svd_plugin.hardware import LONG_RUN, MOVING, PARTITIONS, SBUF_BUDGET, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import (
    X_COLUMNS,
    Operand,
    Output,
    Plan,
    Product,
    dense_hbm_bytes,
    dense_sbuf_bytes,
    operands,
    outputs,
)
from nxdi_svd_plugin.kernels.tiling.loops import Loops, loops
from nxdi_svd_plugin.kernels.tiling.product_work import add_product
from nxdi_svd_plugin.kernels.tiling.segments import Segment
from nxdi_svd_plugin.kernels.tiling.work import Work

DEPTHS = (8 * PARTITIONS, 4 * PARTITIONS, 3 * PARTITIONS)
"""Of one load beside sums in SBUF: runs of 2 KiB of a packed weight, of less where that saves a read."""


@dataclass(frozen=True)
class Through:
    """The two matmuls."""

    first: Loops
    second: Loops


@lru_cache(maxsize=4096)
def through_plans(chain: Chain) -> tuple[Through, ...]:
    """The matmuls of `chain` in every pair of blocks of which none is both faster and moves less; () for no such form.

    There is one for a pair of factors, of one group, with inputs and rank of whole tiles, since all loads are of whole
    tiles.
    """
    if chain.kind.pairs > 1 or not has_whole_tiles(chain):
        return ()
    rank = chain.ranks[0]
    first = first_products(chain, rank)
    if chain.writes_transposed:
        second = _products(chain, (chain.outputs, rank, chain.tokens), "packed", "plain", MOVING)
    else:
        tile = chain.column_tile
        width = MOVING if MOVING % tile == chain.outputs % tile == 0 else tile
        second = _products(chain, (chain.tokens, rank, chain.outputs), "plain", "packed", width, tile=tile)
    return tuple(Through(one, other) for one in first for other in second)


def has_whole_tiles(chain: Chain) -> bool:
    """Whether it is of one group, whose inputs and ranks are whole tiles of 128."""
    return chain.groups == 1 and not any(extent % PARTITIONS for extent in (chain.inputs, *chain.ranks))


@lru_cache(maxsize=4096)
def first_products(chain: Chain, rank: int) -> list[Loops]:
    """(X·U)ᵀ of the factor with this rank, in all blocks of which none is both faster and moves less."""
    x = "interleaved" if chain.transposed_input else "rows"
    segments = tuple(chain.segments) if _pivots(chain) else ()
    shape = (rank, chain.u_rows, chain.tokens)
    return _products(chain, shape, "packed", x, MOVING, _x_rows_bytes(chain, 2), segments)


def _pivots(chain: Chain) -> int:
    """Tiles of the input that are tiles of (X·U)ᵀ."""
    return chain.pivot_tiles[0] if chain.kind.reads_intermediate else 0


def _products(
    chain: Chain,
    shape: tuple[int, int, int],
    x: str,
    w: str,
    width: int,
    taken: int = 0,
    segments: tuple[Segment, ...] = (),
    tile: int = 0,
) -> list[Loops]:
    """One of the two matmuls, [rows, deep, columns], with `taken` bytes of SBUF for something else; [] if none fits."""
    product = Product(*shape, Output(0, 0), x, w, width, tile)
    costs = {}
    for plan in product_plans(product, chain.itemsize, SBUF_BUDGET - taken):
        work, cut = Work(chain.itemsize), loops(replace(product, plan=plan), segments)
        add_product(work, cut)
        costs[cut] = (dense_hbm_bytes(*shape, chain.itemsize, plan), max(work.seconds.values()))
    found: list[Loops] = []
    fastest = float("inf")
    for cut in sorted(costs, key=costs.__getitem__):
        if costs[cut][1] < fastest:
            fastest = costs[cut][1]
            found.append(cut)
    return found


def product_plans(product: Product, itemsize: int, room: int) -> list[Plan]:
    """All blocks of one of the matmuls that fit into `room` with two loads in flight.

    Rows of a block of many columns are stored in runs of LONG_RUN, and a streamed operand that need not come in whole
    tiles comes in as few loads as the room allows: both take less room than the baselines' blocks.
    """
    step = product.w_tile if product.w == "packed" else PARTITIONS
    store = max(1, LONG_RUN // itemsize // product.width) * product.width
    kept = operands(product.rows, product.columns, step)
    plans: list[Plan] = [
        *(plan if plan.keeps_x or plan.block <= store else replace(plan, store=store) for plan in kept),
        *_just_fitting(product, itemsize, room, {plan.block for plan in kept if plan.keeps_x}),
        *outputs(product.rows, product.columns, step, DEPTHS),
    ]
    made = product.w == "rows"
    return [plan for plan in plans if dense_sbuf_bytes(product.deep, itemsize, plan, 2, made) <= room]


def _just_fitting(product: Product, itemsize: int, room: int, blocks: set[int]) -> list[Operand]:
    """Loads that are less than a matmul's columns, and no multiple of 128 of them."""
    if product.w == "packed":
        return []
    found, loads = [], 1 if product.w == "rows" else 2
    for block in blocks:
        widest = (room // itemsize - tiles(product.deep) * block) // (loads * tiles(product.deep) + 2)
        if PARTITIONS < widest < min(MOVING, product.columns):
            stream = -(-product.columns // -(-product.columns // widest))
            found.append(Operand(True, block, min(widest, stream + stream % 2)))
    return found


def through_hbm_bytes(chain: Chain, plan: Through) -> tuple[int, int]:
    """HBM bytes (read, written), exactly as the simulator counts them."""
    second, s = plan.second.product, chain.itemsize
    made = s * chain.tokens * chain.outputs
    read = dense_hbm_bytes(second.rows, second.deep, second.columns, s, second.plan) - made
    identity = PARTITIONS * PARTITIONS * s if chain.needs_identity else 0
    return read + first_read_bytes(chain, plan.first) + identity, made + s * chain.tokens * chain.ranks[0]


def first_read_bytes(chain: Chain, first: Loops) -> int:
    """HBM bytes that a matmul X·U reads, pivots once."""
    product, s = first.product, chain.itemsize
    moved = dense_hbm_bytes(product.rows, product.deep, product.columns, s, product.plan)
    return moved + s * chain.tokens * (PARTITIONS * _pivots(chain) - product.rows)


def through_sbuf_bytes(chain: Chain, plan: Through, in_flight: int = 1) -> int:
    """SBUF bytes per partition, rows of X that are transposed and fp32's identity included."""
    second = product_sbuf_bytes(chain, plan.second.product, in_flight)
    identity = 4 * PARTITIONS if chain.needs_identity else 0
    return max(first_sbuf_bytes(chain, plan.first, in_flight), second + identity)


def first_sbuf_bytes(chain: Chain, first: Loops, in_flight: int = 1) -> int:
    """The same of a matmul X·U. Pivots are loaded where rows of (X·U)ᵀ will be, or where the loads were."""
    return product_sbuf_bytes(chain, first.product, in_flight) + _x_rows_bytes(chain, in_flight)


def product_sbuf_bytes(chain: Chain, product: Product, in_flight: int) -> int:
    """The same of one matmul, without rows of X."""
    return dense_sbuf_bytes(product.deep, chain.itemsize, product.plan, in_flight, product.w == "rows")


def _x_rows_bytes(chain: Chain, in_flight: int) -> int:
    """Rows of X that are transposed, and what fp32 needs for that."""
    if chain.transposed_input:
        return 0
    rows = in_flight * chain.itemsize * min(X_COLUMNS, chain.inputs)
    return rows + (4 * PARTITIONS if chain.needs_identity else 0)
