"""The work of a chain in strips: what the stages of the fused kernels do with a Schedule, counted."""

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.pieces import Piece
from nxdi_svd_plugin.kernels.tiling.product_work import add_transposed_rows
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Step, Strip
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


def add_strips(work: Work, chain: Chain, plan: Schedule) -> None:
    """T of every strip, then its expansion, for all groups."""
    for strip in plan.strips:
        if plan.through:
            _take_back(work, strip, plan)
        elif plan.steps:
            _sum_blocks(work, chain, strip, plan)
        else:
            _keep_input(work, chain, strip, plan)
        if chain.writes_transposed:
            for group in plan.output_tiles:
                _transposed(work, chain, strip, plan, group)
        else:
            _rows(work, chain, strip, plan)


def _take_back(work: Work, strip: Strip, plan: Schedule) -> None:
    """T of the strip from HBM (stages/through.py, load_strip)."""
    for rank in plan.ranks:
        for rows, count in sizes(rank, PARTITIONS):
            work.dma(strip.count * count, rows, strip.tokens)


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
    """The first block's products are copied by the scalar engine, others added by the vector engine; pivots join the
    last sums, both in SBUF, which takes it twice as long. Sums that stay in PSUM are read once, with the last block."""
    for runs in plan.runs:
        for run in runs:
            number, own = times * run.count, step.last and run.own is not None
            work.dma(number, PARTITIONS, tiles(step.rows) * run.width)
            if own:
                work.dma(number, PARTITIONS, strip.tokens)
            for size, count in sizes(strip.tokens, strip.moving):
                work.matmul(number * count * tiles(step.rows), run.width, size)
                if run.in_psum:
                    work.vector(number * count * step.last, size)
                    continue
                evict = work.scalar if step.first else work.vector
                evict(number * count, size)
                if own:
                    work.vector(number * count, 2 * size, from_psum=False)


def _rows(work: Work, chain: Chain, strip: Strip, plan: Schedule) -> None:
    """Y [S, outputs], a block of columns stored at once (stages/expand.py, expand)."""
    token_tiles = [pair for size in strip.holders for pair in sizes(size, PARTITIONS)]
    for columns, blocks in sizes(plan.outputs, plan.v_tiles * plan.column_tile):
        for width, count in _loads_of_v(columns, plan):
            number = strip.count * blocks * count
            work.dma(number * chain.summed, PARTITIONS, tiles(plan.ranks[0]) * width)
            for size, tile_count in token_tiles:
                work.matmul(number * tile_count * chain.rank_tiles, size, width)
                work.scalar(number * tile_count, width)
        for size, tile_count in token_tiles:
            work.dma(strip.count * blocks * tile_count, size, columns)


def _loads_of_v(columns: int, plan: Schedule) -> list[tuple[int, int]]:
    """(columns, how many): `side` packed tiles, the whole ones that are left, the last one if it is none."""
    found = []
    for wide, count in sizes(columns, plan.side * plan.column_tile):
        whole = wide - wide % plan.column_tile
        found += [(part, count) for part in (whole, wide - whole) if part]
    return found


def _transposed(work: Work, chain: Chain, strip: Strip, plan: Schedule, group: OutputTiles) -> None:
    """Y [outputs, S] (stages/expand_transposed.py); no V is read for tiles that are a factor's pivots."""
    count, width = group.count, group.width
    from_psum = [pivot is None for pivot in group.segment.pivots]
    deep = [tiles(rank) for rank, made in zip(plan.ranks, from_psum, strict=True) if made]
    times = strip.count * chain.turns * group.number
    for each in deep:
        work.dma(times, PARTITIONS, count * each * width)
    for row in strip.rows:
        for piece in row.pieces:
            work.matmul(times * count * sum(deep), width, piece.tokens)
            work.scalar(times, count * piece.tokens, from_psum[0])
            if chain.kind.swiglu:  # twice as long where `up` is a tile of T: neither operand is in PSUM then
                work.vector(times, (1 if from_psum[1] else 2) * count * piece.tokens, from_psum[1])
        _store(work, times, count, width, row.tokens, plan)


def _store(work: Work, times: int, count: int, width: int, tokens: int, plan: Schedule) -> None:
    """Output tiles side by side, in one run where they lie so in HBM and all tokens are there."""
    if plan.interleaved and tokens == plan.tokens:
        work.dma(times, PARTITIONS, count * tokens)
    else:
        work.dma(times * count, width, tokens)
