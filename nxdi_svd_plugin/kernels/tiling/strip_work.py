"""The work of a chain in strips: what the stages of the fused kernels do with a Schedule, counted."""

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.pieces import Piece
from nxdi_svd_plugin.kernels.tiling.product_work import add_transposed_rows
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Step, Strip
from nxdi_svd_plugin.kernels.tiling.segments import Segment
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


def add_strips(work: Work, chain: Chain, plan: Schedule) -> None:
    """T of every strip, then its expansion, for all groups."""
    for strip in plan.strips:
        if plan.steps:
            _sum_blocks(work, chain, strip, plan)
        else:
            _keep_input(work, chain, strip, plan)
        if chain.kind.swiglu:
            for segment in plan.segments:
                _swiglu(work, chain, strip, plan, segment)
        elif chain.writes_transposed:
            _transposed(work, strip, plan)
        else:
            _rows(work, chain, strip, plan)


def _keep_input(work: Work, chain: Chain, strip: Strip, plan: Schedule) -> None:
    for sub in strip.subs:
        if chain.transposed_input:
            _columns(work, strip.count * chain.summed, sub.tokens, plan)
        else:
            add_transposed_rows(work, strip.count, sub.tokens, plan.inputs, plan.x_columns)
        for rank in plan.ranks:
            project(work, strip.count * chain.groups, sub.pieces, plan, rank)


def _columns(work: Work, times: int, tokens: int, plan: Schedule) -> None:
    """Tiles of Hᵀ: side by side in HBM where 128 divides the inputs (stages/load.py, load_columns)."""
    if plan.inputs % PARTITIONS:
        for rows, count in sizes(plan.inputs, PARTITIONS):
            work.dma(times * count, rows, tokens)
        return
    for move in plan.moves:
        _tiles(work, times, move.count, tokens, plan)


def _tiles(work: Work, times: int, count: int, tokens: int, plan: Schedule) -> None:
    for together, loads in sizes(count, plan.h_tiles if tokens == plan.tokens else 1):
        work.dma(times * loads, PARTITIONS, together * tokens)


def project(work: Work, times: int, pieces: tuple[Piece, ...], plan: Schedule, rank: int) -> None:
    """(X·U)ᵀ of Xᵀ in SBUF (stages/project.py)."""
    full, rest = divmod(rank, PARTITIONS)
    groups = [
        (count, PARTITIONS, number)
        for columns in (plan.pivots, full - plan.pivots)
        for count, number in sizes(columns, plan.u_tiles)
    ]
    for count, width, number in [*groups, *([(1, rest, 1)] if rest else [])]:
        for rows, loads in sizes(plan.u_rows, plan.u_load * PARTITIONS):
            work.dma(times * number * loads, PARTITIONS, count * tiles(rows) * width)
        for piece in pieces:
            work.matmul(times * number * count * tiles(plan.u_rows), width, piece.tokens)
            work.vector(times * number, count * piece.tokens)


def _sum_blocks(work: Work, chain: Chain, strip: Strip, plan: Schedule) -> None:
    """fp32 sums of T, past which blocks of Xᵀ and U are streamed (stages/accumulate.py)."""
    for step in plan.steps:
        times = strip.count * step.count
        if chain.transposed_input:
            _tiles(work, times, tiles(step.rows), strip.tokens, plan)
        else:
            add_transposed_rows(work, times, strip.tokens, step.rows, plan.x_columns)
        _add_block(work, times, step, strip, plan)


def _add_block(work: Work, times: int, step: Step, strip: Strip, plan: Schedule) -> None:
    """The first block's products are copied by the scalar engine unless they take in pivots, others added."""
    for runs in plan.runs:
        for run in runs:
            number, own = times * run.count, step.first and run.own is not None
            work.dma(number, PARTITIONS, tiles(step.rows) * run.width)
            if own:
                work.dma(number, PARTITIONS, strip.tokens)
            for size, count in sizes(strip.tokens, strip.moving):
                work.matmul(number * count * tiles(step.rows), run.width, size)
                evict = work.scalar if step.first and not own else work.vector
                evict(number * count, size)


def _rows(work: Work, chain: Chain, strip: Strip, plan: Schedule) -> None:
    """Y [S, outputs], a block of columns stored at once (stages/expand.py, expand)."""
    token_tiles = [pair for size in strip.holders for pair in sizes(size, PARTITIONS)]
    for columns, blocks in sizes(plan.outputs, plan.v_tiles * plan.column_tile):
        for width, count in sizes(columns, plan.column_tile):
            number = strip.count * blocks * count
            work.dma(number * chain.summed, PARTITIONS, tiles(plan.ranks[0]) * width)
            for size, tile_count in token_tiles:
                work.matmul(number * tile_count * chain.rank_tiles, size, width)
                work.scalar(number * tile_count, width)
        for size, tile_count in token_tiles:
            work.dma(strip.count * blocks * tile_count, size, columns)


def output_tiles(full: int, rest: int, step: int) -> list[tuple[int, int, int]]:
    """(tiles at once, their width, how many) of `full` tiles of the output and one of `rest`."""
    whole = [(count, PARTITIONS, number) for count, number in sizes(full, step)]
    return [*whole, *([(1, rest, 1)] if rest else [])]


def _transposed(work: Work, strip: Strip, plan: Schedule) -> None:
    """Y [outputs, S] (stages/expand.py, expand_transposed)."""
    deep = tiles(plan.ranks[0])
    for count, width, number in output_tiles(*divmod(plan.outputs, PARTITIONS), plan.v_tiles):
        times = strip.count * number
        work.dma(times, PARTITIONS, count * deep * width)
        for row in strip.rows:
            for piece in row.pieces:
                work.matmul(times * count * deep, width, piece.tokens)
                work.scalar(times, count * piece.tokens)
            _store(work, times, count, width, row.tokens, plan)


def _swiglu(work: Work, chain: Chain, strip: Strip, plan: Schedule, segment: Segment) -> None:
    """Outputs of a segment (stages/expand.py, expand_swiglu), in which no V is read for a factor's pivots.

    The vector engine takes twice as long where `up` is a tile of T: neither operand is in PSUM then.
    """
    full = min(segment.stop, plan.outputs // PARTITIONS) - segment.start
    rest = plan.outputs % PARTITIONS if segment == plan.segments[-1] else 0
    gate, up = (pivot is None for pivot in segment.pivots)
    deep = [tiles(rank) for rank, pivot in zip(plan.ranks, segment.pivots, strict=True) if pivot is None]
    for count, width, number in output_tiles(full, rest, plan.v_tiles):
        times = strip.count * chain.turns * number
        for each in deep:
            work.dma(times, PARTITIONS, count * each * width)
        for row in strip.rows:
            for piece in row.pieces:
                work.matmul(times * count * sum(deep), width, piece.tokens)
                work.scalar(times, count * piece.tokens, from_psum=gate)
                work.vector(times, (1 if up else 2) * count * piece.tokens, from_psum=up)
            _store(work, times, count, width, row.tokens, plan)


def _store(work: Work, times: int, count: int, width: int, tokens: int, plan: Schedule) -> None:
    """Output tiles side by side, in one run where they lie so in HBM and all tokens are there."""
    if plan.interleaved and tokens == plan.tokens:
        work.dma(times, PARTITIONS, count * tokens)
    else:
        work.dma(times * count, width, tokens)
