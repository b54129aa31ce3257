"""What the matmuls of a chain would cost one after the other: the traffic and the time that a plan should not exceed.

Every matmul is blocked for least traffic in all of SBUF (kernels/tiling/dense.py). T = (X·U)ᵀ, and what is before
SwiGLU, go through HBM. X comes as the kernel gets it: where that is in rows, the first matmul transposes what it reads,
and that of a second pair finds Xᵀ.
"""

from dataclasses import dataclass
from functools import lru_cache

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import PASS_COLUMNS, Product, choose_dense, dense_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.product_work import add_product
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


@dataclass(frozen=True)
class Unfused:
    """HBM bytes, and modelled seconds: the sum over the calls of the time of each one's busiest engine."""

    hbm_bytes: int
    seconds: float


@lru_cache(maxsize=4096)
def unfused(chain: Chain) -> Unfused:
    """The matmuls of all groups, with the zeros that U is packed with, and the passes between them."""
    s, products, passes = chain.itemsize, unfused_products(chain), _passes(chain)
    moved = sum(dense_hbm_bytes(p.rows, p.deep, p.columns, s, p.plan) for p in products)
    padding = s * sum(chain.ranks) * (-chain.u_rows % PARTITIONS)
    works = [_product_work(s, product) for product in products] + [_pass_work(s, *shape) for shape in passes]
    seconds = sum(max(work.seconds.values()) for work in works)
    elements = 3 * sum(rows * columns for rows, columns in passes)
    between = 3 * s * (chain.summed - 1) * chain.tokens * chain.outputs
    added = (chain.summed - 1) * max(_pass_work(s, chain.tokens, chain.outputs).seconds.values())
    return Unfused(chain.groups * (moved + padding + s * elements) + between, chain.groups * seconds + added)


def unfused_products(chain: Chain) -> list[Product]:
    """The matmuls of one group: two for each pair of factors."""
    found = []
    for pair, (rank, columns) in enumerate(zip(chain.ranks, chain.v_columns, strict=True)):
        first = (rank, chain.u_rows, chain.tokens)
        second = (columns, rank, chain.tokens) if chain.writes_transposed else (chain.tokens, rank, columns)
        layout = "plain" if chain.transposed_input or pair else "rows"
        found += [
            Product(*first, choose_dense(*first, chain.itemsize), w=layout),
            Product(*second, choose_dense(*second, chain.itemsize)),
        ]
    return found


def _passes(chain: Chain) -> list[tuple[int, int]]:
    """[rows, columns] of what reads two tensors and writes one: SwiGLU, and adding the pivots of `down`."""
    if chain.kind.swiglu:
        return [(chain.outputs, chain.tokens)]
    own = PARTITIONS * chain.pivot_tiles[0] if chain.kind.reads_intermediate else 0
    return [(own, chain.tokens)] if own else []


def _product_work(itemsize: int, product: Product) -> Work:
    work = Work(itemsize)
    add_product(work, product)
    return work


def _pass_work(itemsize: int, rows: int, columns: int) -> Work:
    """Its DMA, which takes longer than what the engines do between."""
    work = Work(itemsize)
    for high, row_tiles in sizes(rows, PARTITIONS):
        for wide, count in sizes(columns, PASS_COLUMNS):
            work.dma(3 * row_tiles * count, high, wide)
    return work
