"""From T = (X·U)ᵀ in SBUF to the rows of the output: V is streamed once past all tokens of a strip."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Strip

Tensor = Any


def copy_on_scalar(tile: Tensor, dtype: Any) -> Tensor:
    """A copy by the scalar engine (its tensor_copy does not exist on NeuronCore-v2), rounded to `dtype`."""
    return nisa.activation(op=nl.copy, data=tile, dtype=dtype)


def expand(out: Tensor, groups: list[list[Tensor]], vs: list[Tensor], first: Any, strip: Strip, plan: Schedule) -> None:
    """Rows `first`... of out [S, outputs]: Y = the sum over the groups of Tᵀ·V, in one PSUM sum.

    Each V is packed in tiles of `plan.column_tile` columns; `groups` has the tensors of T of each group.

    Tokens are the stationary operand. Every V tile is read once per strip and used for all its tokens; the rows of
    `v_tiles` tiles are stored together, so that the DMA runs are long.
    """
    wide = plan.v_tiles * plan.column_tile
    for b in nl.affine_range(plan.outputs // wide):
        _rows_block(out, groups, vs, first, strip, plan, b * wide, wide)
    if plan.outputs % wide:
        _rows_block(out, groups, vs, first, strip, plan, plan.outputs // wide * wide, plan.outputs % wide)


def _rows_block(
    out: Tensor,
    groups: list[list[Tensor]],
    vs: list[Tensor],
    first: Any,
    strip: Strip,
    plan: Schedule,
    left: Any,
    columns: int,
) -> None:
    """Columns left... of the output, `columns` of them, for all tokens of the strip."""
    width, count = plan.column_tile, strip.token_tiles
    wide, rest = plan.side * width, columns % (plan.side * width)
    rows = nl.ndarray((PARTITIONS, count * columns), dtype=out.dtype, buffer=nl.sbuf)
    for c in nl.affine_range(columns // wide):
        _rows_tile(rows, groups, vs, strip, plan, left, columns, c * wide, plan.side, width)
    if rest // width:
        _rows_tile(rows, groups, vs, strip, plan, left, columns, columns - rest, rest // width, width)
    if rest % width:
        _rows_tile(rows, groups, vs, strip, plan, left, columns, columns - rest % width, 1, rest % width)
    tile = 0
    start = 0
    for size in strip.holders:
        for m in nl.affine_range(size // PARTITIONS):
            nl.store(
                out[nl.ds(first + start + m * PARTITIONS, PARTITIONS), nl.ds(left, columns)],
                value=rows[0:PARTITIONS, nl.ds((tile + m) * columns, columns)],
            )
        if size % PARTITIONS:
            done = size // PARTITIONS
            nl.store(
                out[nl.ds(first + start + done * PARTITIONS, size % PARTITIONS), nl.ds(left, columns)],
                value=rows[0 : size % PARTITIONS, nl.ds((tile + done) * columns, columns)],
            )
        tile = tile + tiles(size)
        start = start + size


def _rows_tile(
    rows: Tensor,
    groups: list[list[Tensor]],
    vs: list[Tensor],
    strip: Strip,
    plan: Schedule,
    left: Any,
    columns: int,
    offset: Any,
    side: int,
    width: int,
) -> None:
    """Columns offset... of the block: `side` packed tiles of `width`, of one load of every V."""
    deep = tiles(plan.ranks[0])
    loads = []
    for v in vs:
        loads.append(nl.load(v[0:PARTITIONS, nl.ds((left + offset) * deep, side * deep * width)]))
    tile = 0
    for h, size in enumerate(strip.holders):
        for m in nl.affine_range(size // PARTITIONS):
            at = (tile + m) * columns + offset
            _rows_sum(rows, groups, h, loads, plan, size, m, PARTITIONS, at, side, width)
        if size % PARTITIONS:
            last = size // PARTITIONS
            at = (tile + last) * columns + offset
            _rows_sum(rows, groups, h, loads, plan, size, last, size % PARTITIONS, at, side, width)
        tile = tile + tiles(size)


def _rows_sum(
    rows: Tensor,
    groups: list[list[Tensor]],
    h: int,
    loads: list[Tensor],
    plan: Schedule,
    held: int,
    m: Any,
    count: int,
    at: Any,
    side: int,
    width: int,
) -> None:
    """Tᵀ·V of token tile `m` of holder `h`, which has `count` tokens, summed over the ranks, to column `at` of rows."""
    wide, deep = side * width, tiles(plan.ranks[0])
    total = nl.zeros((PARTITIONS, wide), dtype=nl.float32, buffer=nl.psum)
    for g, loaded in enumerate(loads):
        for part in plan.parts[0]:
            t = groups[g][h * len(plan.parts[0]) + part.number]
            for k in nl.affine_range(part.columns // PARTITIONS):
                stationary = t[0:PARTITIONS, nl.ds(k * held + m * PARTITIONS, count)]
                add_side_by_side(
                    total, stationary, loaded, PARTITIONS, count, (part.tile + k) * width, deep, side, width
                )
            if part.columns % PARTITIONS:
                last, rest = part.columns // PARTITIONS, part.columns % PARTITIONS
                stationary = t[0:rest, nl.ds(last * held + m * PARTITIONS, count)]
                add_side_by_side(total, stationary, loaded, rest, count, (part.tile + last) * width, deep, side, width)
    rows[0:count, nl.ds(at, wide)] = copy_on_scalar(total[0:count, 0:wide], rows.dtype)


def add_side_by_side(
    total: Tensor,
    stationary: Tensor,
    packed: Tensor,
    deep: int,
    count: int,
    at: Any,
    height: int,
    side: int,
    width: int,
) -> None:
    """Add a product to `count` rows of the PSUM tile: of the `deep` rows of a row tile of `side` packed column tiles.

    Each of these has `height` row tiles of `width` columns; `at` is where the row tile begins in the first. They are
    one moving operand of side·width columns with two free axes.
    """
    if side == 1:
        total[0:count, 0:width] += nisa.nc_matmul(stationary, packed[0:deep, nl.ds(at, width)])
    else:
        row = nl.arange(deep)[:, None, None]
        token = nl.arange(count)[:, None, None]
        tile = nl.arange(side)[None, :, None]
        column = nl.arange(width)[None, None, :]
        total[token, tile * width + column] += nisa.nc_matmul(
            stationary, packed[row, at + tile * (height * width) + column]
        )
