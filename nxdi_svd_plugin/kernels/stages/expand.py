"""From T = (X·U)ᵀ in SBUF to the output: V is streamed once past all tokens of a strip."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.tiling.pieces import Piece
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Strip
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles

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
    rows = nl.ndarray((PARTITIONS, count * columns), dtype=out.dtype, buffer=nl.sbuf)
    for c in nl.affine_range(columns // width):
        _rows_tile(rows, groups, vs, strip, plan, left, columns, c * width, width)
    if columns % width:
        _rows_tile(rows, groups, vs, strip, plan, left, columns, columns // width * width, columns % width)
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
    width: int,
) -> None:
    """Columns offset... of the block, of one load of every V."""
    deep = tiles(plan.ranks[0])
    loads = []
    for v in vs:
        loads.append(nl.load(v[0:PARTITIONS, nl.ds((left + offset) * deep, deep * width)]))
    tile = 0
    for h, size in enumerate(strip.holders):
        for m in nl.affine_range(size // PARTITIONS):
            _rows_sum(rows, groups, h, loads, plan, size, m, PARTITIONS, (tile + m) * columns + offset, width)
        if size % PARTITIONS:
            last = size // PARTITIONS
            at = (tile + last) * columns + offset
            _rows_sum(rows, groups, h, loads, plan, size, last, size % PARTITIONS, at, width)
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
    width: int,
) -> None:
    """Tᵀ·V of token tile `m` of holder `h`, which has `count` tokens, summed over the ranks, to column `at` of rows."""
    total = nl.zeros((PARTITIONS, width), dtype=nl.float32, buffer=nl.psum)
    for g, loaded in enumerate(loads):
        for part in plan.parts[0]:
            t = groups[g][h * len(plan.parts[0]) + part.number]
            for k in nl.affine_range(part.columns // PARTITIONS):
                total[0:count, 0:width] += nisa.nc_matmul(
                    t[0:PARTITIONS, nl.ds(k * held + m * PARTITIONS, count)],
                    loaded[0:PARTITIONS, nl.ds((part.tile + k) * width, width)],
                )
            if part.columns % PARTITIONS:
                last, rest = part.columns // PARTITIONS, part.columns % PARTITIONS
                total[0:count, 0:width] += nisa.nc_matmul(
                    t[0:rest, nl.ds(last * held + m * PARTITIONS, count)],
                    loaded[0:rest, nl.ds((part.tile + last) * width, width)],
                )
    rows[0:count, nl.ds(at, width)] = copy_on_scalar(total[0:count, 0:width], rows.dtype)


def expand_transposed(
    out: Tensor,
    factors: list[list[Tensor]],
    vs: list[Tensor],
    bias: Tensor | None,
    first: Any,
    strip: Strip,
    plan: Schedule,
) -> None:
    """Columns `first`... of out [outputs, S]: Vᵀ·T of one factor, silu(V_gateᵀ·T_gate) * (V_upᵀ·T_up) of two.

    `factors` has the tensors of T of each; every v is packed in tiles of 128 columns. A V load makes `v_tiles` output
    tiles, which share a PSUM bank if there is more than one (few tokens). Where a segment of the outputs is a factor's
    pivots, a tile of T itself stands for the product. `bias` [128, 1] is zero; None for one factor.
    """
    for group in plan.output_tiles:
        if group.number == 1:
            _transposed_tiles(out, factors, vs, bias, first, strip, plan, group, group.first)
        else:
            for g in nl.affine_range(group.number):
                tile = group.first + g * group.count
                _transposed_tiles(out, factors, vs, bias, first, strip, plan, group, tile)


def _transposed_tiles(
    out: Tensor,
    factors: list[list[Tensor]],
    vs: list[Tensor],
    bias: Tensor | None,
    first: Any,
    strip: Strip,
    plan: Schedule,
    group: OutputTiles,
    tile: Any,
) -> None:
    """Tiles `tile`... after the start of the group's segment."""
    weights = load_all_weights(vs, plan, group, tile)
    count, width = group.count, group.width
    for row in strip.rows:
        block = nl.ndarray((PARTITIONS, count * row.tokens), dtype=out.dtype, buffer=nl.sbuf)
        for piece in row.pieces:
            sums = all_made(weights, factors, plan, strip, piece, group, tile)
            if bias is None:
                block[0:width, nl.ds(piece.start, count * piece.tokens)] = copy_on_scalar(sums[0], out.dtype)
            else:
                block[0:width, nl.ds(piece.start, count * piece.tokens)] = gated(sums, bias, width, out.dtype)
        at = group.segment.start + tile
        store_tiles(out, block, at, count, width, first + row.start, row.tokens, plan.interleaved)


def gated(sums: list[Tensor], bias: Tensor, width: int, dtype: Any) -> Tensor:
    """silu(sums[0]) * sums[1]."""
    made = nisa.activation(op=nl.silu, data=sums[0], bias=bias[0:width, 0:1], dtype=nl.float32)
    return nisa.tensor_tensor(made, sums[1], op=nl.multiply, dtype=dtype)


def load_all_weights(vs: list[Tensor], plan: Schedule, group: OutputTiles, tile: Any) -> list[Any]:
    """The weights of every factor for these tiles, None where they are the factor's pivots."""
    weights = []
    for factor, v in enumerate(vs):
        if group.segment.pivots[factor] is None:
            at = group.segment.others[factor] + tile
            weights.append(load_weights(v, plan.ranks[factor], at, group.count, group.width))
        else:
            weights.append(None)
    return weights


def all_made(
    weights: list[Any],
    factors: list[list[Tensor]],
    plan: Schedule,
    strip: Strip,
    piece: Piece,
    group: OutputTiles,
    tile: Any,
) -> list[Tensor]:
    """Vᵀ·T of every factor for a piece of T, in PSUM, or the tiles of T that are pivots."""
    sums = []
    for factor, ts in enumerate(factors):
        held = strip.holders[piece.holder]
        if weights[factor] is not None:
            sums.append(_expanded(weights[factor], ts, plan, factor, held, piece, group.count, group.width))
        else:
            own = (group.segment.pivots[factor] + tile) * held + piece.offset
            sums.append(ts[piece.holder][0 : group.width, nl.ds(own, group.count * piece.tokens)])
    return sums


def load_weights(v: Tensor, rank: int, tile: Any, count: int, width: int) -> Tensor:
    """Column tiles `tile`... of v packed in tiles of 128, `count` of `width` columns each."""
    deep = tiles(rank)
    return nl.load(v[0:PARTITIONS, nl.ds(tile * (deep * PARTITIONS), count * deep * width)])


def _expanded(
    weights: Tensor, ts: list[Tensor], plan: Schedule, factor: int, held: int, piece: Piece, count: int, width: int
) -> Tensor:
    """`count` tiles of Vᵀ·T for the tokens of a piece of T, side by side in one PSUM tile."""
    total = nl.zeros((PARTITIONS, count * piece.tokens), dtype=nl.float32, buffer=nl.psum)
    for j in nl.affine_range(count):
        _add_tile(total, weights, ts, plan, factor, held, piece, j, width)
    return total[0:width, 0 : count * piece.tokens]


def _add_tile(
    total: Tensor,
    weights: Tensor,
    ts: list[Tensor],
    plan: Schedule,
    factor: int,
    held: int,
    piece: Piece,
    j: Any,
    width: int,
) -> None:
    """Tile `j` of Vᵀ·T, summed over the rank."""
    tokens, deep = piece.tokens, tiles(plan.ranks[factor])
    for part in plan.parts[factor]:
        t = ts[piece.holder * len(plan.parts[factor]) + part.number]
        for k in nl.affine_range(part.columns // PARTITIONS):
            total[0:width, nl.ds(j * tokens, tokens)] += nisa.nc_matmul(
                weights[0:PARTITIONS, nl.ds((j * deep + part.tile + k) * width, width)],
                t[0:PARTITIONS, nl.ds(k * held + piece.offset, tokens)],
            )
        if part.columns % PARTITIONS:
            last, rest = part.columns // PARTITIONS, part.columns % PARTITIONS
            total[0:width, nl.ds(j * tokens, tokens)] += nisa.nc_matmul(
                weights[0:rest, nl.ds((j * deep + part.tile + last) * width, width)],
                t[0:rest, nl.ds(last * held + piece.offset, tokens)],
            )


def store_tiles(
    out: Tensor, block: Tensor, tile: Any, count: int, width: int, first: Any, tokens: int, interleaved: bool
) -> None:
    """Store block [128, count·tokens] as output tiles `tile`... of out [outputs, S]; see kernels/packing.py."""
    outputs, total = out.shape
    if not interleaved:
        for j in nl.affine_range(count):
            nl.store(
                out[nl.ds((tile + j) * PARTITIONS, width), nl.ds(first, tokens)],
                value=block[0:width, nl.ds(j * tokens, tokens)],
            )
    elif tokens == total:
        rows = out.reshape((PARTITIONS, outputs // PARTITIONS * total))
        nl.store(rows[0:PARTITIONS, nl.ds(tile * total, count * total)], value=block)
    else:
        rows = out.reshape((PARTITIONS, outputs // PARTITIONS * total))
        for j in nl.affine_range(count):
            nl.store(
                rows[0:PARTITIONS, nl.ds((tile + j) * total + first, tokens)],
                value=block[0:PARTITIONS, nl.ds(j * tokens, tokens)],
            )
