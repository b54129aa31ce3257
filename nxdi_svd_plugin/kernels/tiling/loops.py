"""A matmul of kernels/stages/gemm.py in plain numbers: every loop that its blocks make, known before it is traced."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.dense import Operand, Output, Product
from nxdi_svd_plugin.kernels.tiling.segments import Segment


@dataclass(frozen=True)
class TileRun:
    """Tiles first... of a block, `count` of `size` rows (or columns) each.

    `own`: the tile of the input that is added to the first of them, the next to the next; None for none.
    """

    first: int
    count: int
    size: int
    own: int | None = None


@dataclass(frozen=True)
class Cut:
    """`count` equal blocks of `size` rows (or columns) of the output, the first from `first` on; `runs` of each.

    `pieces`: of columns, what is stored at once, cut from the block.
    """

    first: int
    size: int
    count: int
    runs: tuple[TileRun, ...]
    pieces: tuple["Cut", ...] = ()


@dataclass(frozen=True)
class Move:
    """Tiles source... of the input, `count` of them, become tiles target... of the block in SBUF."""

    source: int
    target: int
    count: int


@dataclass(frozen=True)
class Depth:
    """`count` equal blocks of the contraction of `rows` each, the first from its tile `tile` on.

    `moves`: where the tiles of the first lie in an "interleaved" operand. `first`: of all blocks.
    """

    tile: int
    rows: int
    count: int
    moves: tuple[Move, ...]
    first: bool


@dataclass(frozen=True)
class Loops:
    """A product, and how its output and its contraction are cut."""

    product: Product
    rows: tuple[Cut, ...]
    columns: tuple[Cut, ...]
    depths: tuple[Depth, ...]


@lru_cache(maxsize=65536)
def loops(product: Product, segments: tuple[Segment, ...] = ()) -> Loops:
    """The loops of `product`.

    `segments`: those of an input of which some tiles are pivots of the one factor: they are no rows of the contraction
    but are added to the first rows of the output, X·U with U = [I ; C].
    """
    rows, columns = block_sizes(product)
    store = product.plan.store if isinstance(product.plan, Operand) else 0
    return Loops(
        product,
        _cuts(product.rows, rows, PARTITIONS, segments),
        _column_cuts(product.columns, columns, product.width, store),
        tuple(_depths(product, _stored(product, segments))),
    )


def block_sizes(product: Product) -> tuple[int, int]:
    """Rows and columns of a block of the output."""
    plan = product.plan
    if isinstance(plan, Output):
        return plan.rows, plan.columns
    return (plan.block, plan.stream) if plan.keeps_x else (plan.stream, plan.block)


@lru_cache(maxsize=4096)
def _column_cuts(total: int, step: int, width: int, store: int) -> tuple[Cut, ...]:
    return tuple(
        replace(cut, pieces=_cuts(cut.size, store or cut.size, width, ())) for cut in _cuts(total, step, width, ())
    )


@lru_cache(maxsize=4096)
def _cuts(total: int, step: int, width: int, segments: tuple[Segment, ...]) -> tuple[Cut, ...]:
    own: dict[int, int] = {}
    for part in segments:
        if part.pivots[0] is not None:
            own.update({part.pivots[0] + n: part.start + n for n in range(part.stop - part.start)})
    found: list[Cut] = []
    for first in range(0, total, step):
        size = min(step, total - first)
        cut = Cut(first, size, 1, _runs(first // width, size, width, own))
        if found and (found[-1].size, found[-1].runs) == (size, cut.runs):
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(cut)
    return tuple(found)


def _runs(start: int, extent: int, width: int, own: Mapping[int, int]) -> tuple[TileRun, ...]:
    """The tiles of a block whose first tile is number `start` of all."""
    found: list[TileRun] = []
    for tile in range(-(-extent // width)):
        size, source = min(width, extent - tile * width), own.get(start + tile)
        last = found[-1] if found else None
        if last is not None and last.size == size and source == (None if last.own is None else last.own + last.count):
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(TileRun(tile, 1, size, source))
    return tuple(found)


def _stored(product: Product, segments: tuple[Segment, ...]) -> list[tuple[int, int, int]]:
    """(tile of the input, tile of the contraction, rows) of every run of inputs that are no pivots."""
    if not segments:
        return [(0, 0, product.deep)]
    others = [part for part in segments if part.pivots[0] is None]
    return [(part.start, part.others[0], PARTITIONS * (part.stop - part.start)) for part in others]


def _depths(product: Product, stored: list[tuple[int, int, int]]) -> list[Depth]:
    """All of the contraction where an operand is kept whole, else blocks that no run of pivots lies in."""
    plan = product.plan
    if not isinstance(plan, Output):
        moves = tuple(Move(source, tile, tiles(rows)) for source, tile, rows in stored)
        return [Depth(0, product.deep, 1, moves, True)]
    found: list[Depth] = []
    for source, tile, extent in stored:
        for done in range(0, extent, plan.depth):
            rows, shift = min(plan.depth, extent - done), done // PARTITIONS
            last = found[-1] if found else None
            if last is not None and shift and rows == last.rows and not last.first:
                found[-1] = replace(last, count=last.count + 1)
            else:
                move = Move(source + shift, 0, tiles(rows))
                found.append(Depth(tile + shift, rows, 1, (move,), not found))
    return found
