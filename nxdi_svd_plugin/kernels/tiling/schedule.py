"""A plan in plain numbers, as the kernels read it while they are traced: nothing in it is computed at that time."""

from dataclasses import dataclass

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.packing import interleaved
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, stored_rows
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.pieces import Piece, cut, holding, row_tokens
from nxdi_svd_plugin.kernels.tiling.segments import Segment

H_LOAD_BYTES = 8 * 1024
"""Bytes per partition of one load of Hᵀ, where its tiles are side by side: enough for full DMA speed, and no more, so
that the tensor engine starts early (aws-neuron-sdk v2.31.1, nki/deep-dives/nki-dma-bandwidth-guide.rst)."""


@dataclass(frozen=True)
class Row:
    """Tokens `start`... of a strip that are stored together, from the pieces of T that they are made of."""

    start: int
    tokens: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class SubStrip:
    """Tokens `start`... of a strip, which fill `pieces` of T."""

    start: int
    tokens: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Strip:
    """`count` equal strips of `tokens`, the first at token `first`.

    `holders` are the tokens of each tensor of T; `token_tiles` the tiles of 128 tokens over all of them. `rows` are for
    a transposed output.
    """

    count: int
    first: int
    tokens: int
    subs: tuple[SubStrip, ...]
    holders: tuple[int, ...]
    token_tiles: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Move:
    """Tiles source... of the input, `count` of them, become tiles target... of Xᵀ in SBUF."""

    source: int
    target: int
    count: int


@dataclass(frozen=True)
class Schedule:
    """One call: shapes, loads and strips.

    `u_rows` are the rows of the stored U, `pivots` the rank tiles that take in tiles of Xᵀ itself. One load of U has
    `u_load` input tiles of `u_tiles` rank tiles; one of V, or one output block, `v_tiles` column tiles; one of X
    `x_columns` columns, of Hᵀ up to `h_tiles` tiles.
    """

    tokens: int
    inputs: int
    outputs: int
    ranks: tuple[int, ...]
    u_rows: int
    pivots: int
    input_tiles: int
    column_tile: int
    u_load: int
    u_tiles: int
    v_tiles: int
    x_columns: int
    h_tiles: int
    interleaved: bool
    segments: tuple[Segment, ...]
    moves: tuple[Move, ...]
    strips: tuple[Strip, ...]


def schedule(chain: Chain, blocks: Blocks) -> Schedule:
    """The blocks of a chain, spelled out."""
    buffers = blocks.buffers
    return Schedule(
        tokens=chain.tokens,
        inputs=chain.inputs,
        outputs=chain.outputs,
        ranks=chain.ranks,
        u_rows=chain.u_rows,
        pivots=chain.pivot_tiles[0] if chain.kind.reads_intermediate else 0,
        input_tiles=chain.input_tiles,
        column_tile=chain.column_tile,
        u_load=buffers.u_rows,
        u_tiles=buffers.u_tiles,
        v_tiles=buffers.v_tiles,
        x_columns=buffers.x_tiles * PARTITIONS,
        h_tiles=max(1, H_LOAD_BYTES // (chain.itemsize * chain.tokens)),
        interleaved=chain.kind.writes_intermediate and interleaved(chain.outputs),
        segments=tuple(chain.segments),
        moves=_moves(chain),
        strips=_strips(chain, blocks),
    )


def _moves(chain: Chain) -> tuple[Move, ...]:
    """The pivots' tiles of Xᵀ follow the others, which are one run for the contraction with C."""
    if not chain.kind.reads_intermediate:
        return ()
    others = tiles(chain.u_rows)
    return tuple(
        Move(part.start, part.others[0] if part.pivots[0] is None else others + part.pivots[0], part.stop - part.start)
        for part in chain.segments
    )


def _strips(chain: Chain, blocks: Blocks) -> tuple[Strip, ...]:
    first, found = 0, []
    for count, sizes in blocks.groups:
        found.append(_strip(chain, blocks, count, first, sizes))
        first += count * sum(sizes)
    return tuple(found)


def _strip(chain: Chain, blocks: Blocks, count: int, first: int, sizes: tuple[int, ...]) -> Strip:
    holders, parts = holding(sizes, chain.token_align)
    subs, start = [], 0
    for size, part in zip(sizes, parts, strict=True):
        pieces = [piece for whole in part for piece in cut(whole, MOVING // blocks.buffers.u_tiles)]
        subs.append(SubStrip(start, size, tuple(pieces)))
        start += size
    token_tiles = sum(tiles(size) for size in holders)
    return Strip(count, first, sum(sizes), tuple(subs), tuple(holders), token_tiles, _rows(chain, blocks, sizes))


def _rows(chain: Chain, blocks: Blocks, sizes: tuple[int, ...]) -> tuple[Row, ...]:
    if not chain.writes_transposed:
        return ()
    start, found = 0, []
    for row in stored_rows(chain, blocks.buffers, sizes):
        found.append(Row(start, row_tokens(row), tuple(row)))
        start += row_tokens(row)
    return tuple(found)
