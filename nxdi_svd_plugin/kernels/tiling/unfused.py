"""What the matmuls of a chain would cost one after the other: the traffic and the time that a plan should not exceed.

Every matmul is blocked for least traffic in all of SBUF (kernels/tiling/dense.py). T = (X·U)ᵀ, and what is before
SwiGLU, go through HBM. X comes as the kernel gets it: where that is in rows, the first matmul transposes what it reads,
and that of a second pair finds Xᵀ.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import (
    PASS_COLUMNS,
    SUM_DEPTH,
    Product,
    choose_dense,
    dense_hbm_bytes,
    dense_plans,
)
from nxdi_svd_plugin.kernels.tiling.loops import loops
from nxdi_svd_plugin.kernels.tiling.product_work import add_product
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


@dataclass(frozen=True)
class Unfused:
    """HBM bytes, and modelled seconds: the sum over the calls of the time of each one's busiest engine."""

    hbm_bytes: int
    seconds: float


@lru_cache(maxsize=4096)
def unfused(chain: Chain, taken: int = 0) -> Unfused:
    """The matmuls of all groups, with the zeros that U is packed with, and the passes between them.

    `taken`: bytes of SBUF per partition that they leave alone.
    """
    s, products = chain.itemsize, unfused_products(chain, taken)
    moved = sum(dense_hbm_bytes(p.rows, p.deep, p.columns, s, p.plan) for p in products)
    moved += s * sum(chain.ranks) * (-chain.u_rows % PARTITIONS)
    elements = sum(tensors * rows * columns for tensors, rows, columns in _passes(chain))
    between = 3 * s * (chain.summed - 1) * chain.tokens * chain.outputs
    return Unfused(chain.groups * (moved + s * elements) + between, _seconds(chain, products))


@lru_cache(maxsize=4096)
def least_seconds(chain: Chain) -> float:
    """Those of the fastest blocks, whatever they move."""
    return _seconds(chain, [_fastest(chain.itemsize, product) for product in unfused_products(chain)])


def unfused_products(chain: Chain, taken: int = 0) -> list[Product]:
    """The matmuls of one group: two for each pair of factors."""
    found = []
    for pair, (rank, columns) in enumerate(zip(chain.ranks, chain.v_columns, strict=True)):
        first = (rank, chain.u_rows, chain.tokens)
        second = (columns, rank, chain.tokens) if chain.writes_transposed else (chain.tokens, rank, columns)
        layout = "plain" if chain.transposed_input or pair else "rows"
        found += [
            Product(*first, choose_dense(*first, chain.itemsize, taken=taken), w=layout),
            Product(*second, choose_dense(*second, chain.itemsize, taken=taken)),
        ]
    return found


def _passes(chain: Chain) -> list[tuple[int, int, int]]:
    """(tensors, rows, columns) of what lies between: SwiGLU reads two and writes one.

    The pivots of `down` are read, no more: a matmul that can add them as it rounds its sums needs no pass for them.
    """
    if chain.kind.swiglu:
        return [(3, chain.outputs, chain.tokens)]
    own = PARTITIONS * chain.pivot_tiles[0] if chain.kind.reads_intermediate else 0
    return [(1, own, chain.tokens)] if own else []


def _seconds(chain: Chain, products: list[Product]) -> float:
    s = chain.itemsize
    one = sum(_product_seconds(s, product) for product in products)
    one += sum(_pass_seconds(s, *shape) for shape in _passes(chain))
    return chain.groups * one + (chain.summed - 1) * _pass_seconds(s, 3, chain.tokens, chain.outputs)


def _fastest(itemsize: int, product: Product) -> Product:
    plans = dense_plans(product.rows, product.deep, product.columns, itemsize, PARTITIONS, (SUM_DEPTH,), 0)
    return min((replace(product, plan=plan) for plan in plans), key=lambda each: _product_seconds(itemsize, each))


def _product_seconds(itemsize: int, product: Product) -> float:
    work = Work(itemsize)
    add_product(work, loops(product))
    return max(work.seconds.values())


def _pass_seconds(itemsize: int, tensors: int, rows: int, columns: int) -> float:
    """Its DMA, which takes longer than what the engines do between."""
    work = Work(itemsize)
    for high, row_tiles in sizes(rows, PARTITIONS):
        for wide, count in sizes(columns, PASS_COLUMNS):
            work.dma(tensors * row_tiles * count, high, wide)
    return work.seconds["dma"]
