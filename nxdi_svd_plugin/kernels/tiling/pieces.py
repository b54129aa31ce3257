"""Pieces of a strip: which tokens of (X·U)ᵀ lie in which tensor, and how they are cut into matmuls.

Kernels call these functions while they are traced: no `range` is used, which NKI's front end turns into a device loop,
and a Piece holds numbers alone, never a tensor.
"""

from dataclasses import dataclass

from nxdi_svd_plugin.hardware import PARTITIONS, tiles


@dataclass(frozen=True)
class Piece:
    """`tokens` of (X·U)ᵀ in tensor number `holder`, from its token `offset` on.

    `start`: where the same tokens begin in what they are made from (Xᵀ of the sub-strip) or go into (a stored block).
    """

    holder: int
    offset: int
    start: int
    tokens: int


def held_tokens(done: int, total: int, align: int) -> int:
    """Tokens of (X·U)ᵀ that have a place in SBUF once `done` of the strip's `total` are computed."""
    return min(-(-done // align) * align, total)


def holding(strip: tuple[int, ...], align: int) -> tuple[list[int], list[list[Piece]]]:
    """Where the (X·U)ᵀ of every sub-strip goes: (tokens of each tensor, pieces of each sub-strip).

    A tensor is made when it is first needed and holds a multiple of `align` tokens, so that no stationary tile of
    the second phase is split by two sub-strips.
    """
    sizes: list[int] = []
    pieces: list[list[Piece]] = []
    begin = held = first = 0
    for size in strip:
        end, part = begin + size, []
        if begin < held:
            part.append(Piece(len(sizes) - 1, begin - first, 0, min(held, end) - begin))
        if end > held:
            start, first = max(begin, held), held
            held = held_tokens(end, sum(strip), align)
            sizes.append(held - first)
            part.append(Piece(len(sizes) - 1, start - first, start - begin, end - start))
        pieces.append(part)
        begin = end
    return sizes, pieces


def cut(piece: Piece, step: int) -> list[Piece]:
    """The fewest nearly equal parts of a piece that are at most `step` tokens long."""
    return [
        Piece(piece.holder, piece.offset + shift, piece.start + shift, tokens)
        for shift, tokens in spans(piece.tokens, step)
    ]


def whole_tiles(sizes: list[int]) -> list[Piece]:
    """Tensors of these token counts, one after the other, in tiles of 128 tokens; `start` is the place among all.

    The last tile of a tensor has what is left of it.
    """
    first, found = 0, []
    for holder, size in enumerate(sizes):
        for tile, _ in enumerate([0] * tiles(size)):
            offset = tile * PARTITIONS
            found.append(Piece(holder, offset, first + offset, min(PARTITIONS, size - offset)))
        first += size
    return found


def row_tokens(row: list[Piece]) -> int:
    """Tokens of one row of `stored_rows`."""
    return sum(piece.tokens for piece in row)


def spans(total: int, step: int) -> list[tuple[int, int]]:
    """(start, size) of the fewest nearly equal pieces of `total` that are at most `step` long."""
    count = -(-total // step)
    size = -(-total // count)
    return [(k * size, min(size, total - k * size)) for k, _ in enumerate([0] * -(-total // size))]
