"""A plan in plain numbers, as the kernels read it while they are traced: nothing in it is computed at that time."""

from dataclasses import dataclass, replace

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.packing import interleaved
from nxdi_svd_plugin.kernels.tiling.blocks import SUM_PART, Blocks, Buffers, Plan, stored_rows
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loops import Loops, Move
from nxdi_svd_plugin.kernels.tiling.pieces import Piece, cut, holding, row_tokens, spans
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles, output_tiles
from nxdi_svd_plugin.kernels.tiling.through import Through

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
    a transposed output. `moving` tokens are one matmul where the contraction is split; `banks` are the tokens of each
    PSUM bank with sums of the last rank tile, none where all sums are in SBUF.
    """

    count: int
    first: int
    tokens: int
    subs: tuple[SubStrip, ...]
    holders: tuple[int, ...]
    token_tiles: int
    rows: tuple[Row, ...]
    moving: int
    banks: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """`count` equal blocks of a split contraction, of `rows` inputs each.

    The first has the tiles `row`... of the stored U and `source`... of the input. `first` and `last`: of all blocks.
    """

    row: int
    source: int
    rows: int
    count: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Part:
    """Tensor `number` of T: `columns` of the rank, from tile `tile` on; `summed` of its tiles have sums in SBUF."""

    number: int
    tile: int
    columns: int
    summed: int


@dataclass(frozen=True)
class RankRun:
    """Rank tiles first..., `count` of `width` columns each: tiles place... of part `part`.

    `own`: the tile of the input that the first of them takes in, the next the next one; None for no pivots. `in_psum`:
    the last tile, whose sums stay in PSUM.
    """

    part: int
    place: int
    first: int
    count: int
    width: int
    own: int | None
    in_psum: bool


@dataclass(frozen=True)
class Schedule:
    """One call: shapes, loads and strips.

    `u_rows` are the rows of the stored U, `pivots` the rank tiles that take in tiles of Xᵀ itself. One load of U has
    `u_load` input tiles of `u_tiles` rank tiles; one of V, or one output block, `v_tiles` column tiles (of a V that
    moves `side` of them are a load, and one matmul's columns); one of X `x_columns` columns, of Hᵀ up to `h_tiles`
    tiles. `parts` are the tensors of T for each factor (one, unless the contraction is split); `steps` the blocks of a
    split contraction, none if all of Xᵀ is kept; `runs` what each does.
    `output_tiles`: those of a transposed output, by loads of V; `apart`: all of gate's product before up's.
    `through`: matmuls whose product goes to HBM: X·U for each factor, and of one factor the second, without strips.
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
    side: int
    x_columns: int
    h_tiles: int
    interleaved: bool
    output_tiles: tuple[OutputTiles, ...]
    apart: bool
    moves: tuple[Move, ...]
    strips: tuple[Strip, ...]
    parts: tuple[tuple[Part, ...], ...]
    steps: tuple[Step, ...]
    runs: tuple[tuple[RankRun, ...], ...]
    through: tuple[Loops, ...]


def schedule(chain: Chain, plan: Plan) -> Schedule:
    """The plan of a chain, spelled out."""
    blocks = plan if isinstance(plan, Blocks) else Blocks((), Buffers(1, 1, 1, 1))
    matmuls = (plan.first, plan.second) if isinstance(plan, Through) else plan.firsts
    buffers = blocks.buffers
    outputs = output_tiles(tuple(chain.segments), chain.outputs, buffers.v_tiles) if chain.writes_transposed else ()
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
        side=buffers.side,
        x_columns=buffers.x_tiles * PARTITIONS,
        h_tiles=max(1, H_LOAD_BYTES // (chain.itemsize * chain.tokens)),
        interleaved=chain.kind.writes_intermediate and interleaved(chain.outputs),
        output_tiles=outputs,
        apart=buffers.apart,
        moves=_moves(chain),
        strips=_strips(chain, blocks),
        parts=tuple(_parts(rank, buffers, last) for rank, last in _last(chain)),
        steps=tuple(_steps(chain, buffers.split)) if buffers.split else (),
        runs=tuple(_runs(chain, rank, buffers, last) for rank, last in _last(chain)) if buffers.split else (),
        through=matmuls,
    )


def _last(chain: Chain) -> list[tuple[int, bool]]:
    """(rank, whether it is the last factor's)."""
    return [(rank, number == len(chain.ranks) - 1) for number, rank in enumerate(chain.ranks)]


def _parts(rank: int, buffers: Buffers, last: bool) -> tuple[Part, ...]:
    """All of T, or SUM_PART tiles each where the contraction is split; the last has the rest."""
    step = SUM_PART if buffers.split else tiles(rank)
    wide, count = step * PARTITIONS, -(-tiles(rank) // step)
    found = []
    for n in range(count):
        columns = min(wide, rank - n * wide)
        in_psum = buffers.in_psum and last and n == count - 1
        found.append(Part(n, n * step, columns, tiles(columns) - in_psum))
    return tuple(found)


def _steps(chain: Chain, step: int) -> list[Step]:
    """Blocks of `step` tiles; a run of pivots of `down`, which are no rows of the stored U, ends a block early."""
    found: list[tuple[int, int, int, int]] = []
    for source, row, rows in _stored_rows(chain):
        whole, rest = divmod(rows, step * PARTITIONS)
        found += [(row + n * step, source + n * step, step * PARTITIONS, n) for n in range(whole)]
        found += [(row + whole * step, source + whole * step, rest, whole)] if rest else []
    first, *middle, last = found
    steps = [Step(*first[:3], 1, True, False)]
    for row, source, rows, number in middle:
        if number > 1 and steps[-1].rows == rows and not steps[-1].first:
            steps[-1] = replace(steps[-1], count=steps[-1].count + 1)
        else:
            steps.append(Step(row, source, rows, 1, False, False))
    return [*steps, Step(*last[:3], 1, False, True)]


def _stored_rows(chain: Chain) -> list[tuple[int, int, int]]:
    """(tile of the input, tile of the stored U, inputs) of every run of inputs that are no pivots."""
    if not chain.kind.reads_intermediate:
        return [(0, 0, chain.inputs)]
    return [
        (part.start, part.others[0], min(PARTITIONS * part.stop, chain.inputs) - PARTITIONS * part.start)
        for part in chain.segments
        if part.pivots[0] is None
    ]


def _runs(chain: Chain, rank: int, buffers: Buffers, last_factor: bool) -> tuple[RankRun, ...]:
    """The rank tiles of every part, cut where a run of pivots begins or ends, and before the one that is in PSUM."""
    source = {}
    if chain.kind.reads_intermediate:
        for segment in chain.segments:
            if segment.pivots[0] is not None:
                source.update({segment.pivots[0] + n: segment.start + n for n in range(segment.stop - segment.start)})
    found: list[RankRun] = []
    for tile in range(tiles(rank)):
        part, place = divmod(tile, SUM_PART)
        width, own = min(PARTITIONS, rank - tile * PARTITIONS), source.get(tile)
        in_psum = buffers.in_psum and last_factor and tile == tiles(rank) - 1
        last = None if in_psum or not found else found[-1]
        follows = last is not None and own == (None if last.own is None else last.own + last.count)
        if last is not None and follows and last.part == part and last.width == width:
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(RankRun(part, place, tile, 1, width, own, in_psum))
    return tuple(found)


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
    moved = tuple(size for _, size in spans(sum(sizes), MOVING))
    banks = moved if blocks.buffers.in_psum else ()
    rows = _rows(chain, blocks, sizes)
    return Strip(count, first, sum(sizes), tuple(subs), tuple(holders), token_tiles, rows, moved[0], banks)


def _rows(chain: Chain, blocks: Blocks, sizes: tuple[int, ...]) -> tuple[Row, ...]:
    if not chain.writes_transposed:
        return ()
    start, found = 0, []
    for row in stored_rows(chain, blocks.buffers, sizes):
        found.append(Row(start, row_tokens(row), tuple(row)))
        start += row_tokens(row)
    return tuple(found)
