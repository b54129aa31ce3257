"""From T = (X·U)ᵀ in SBUF to the transposed output: V is streamed once past all tokens of a strip."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.tiling.pieces import Piece
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, Strip
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles

Tensor = Any


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
    if plan.apart:
        _gate_then_up(out, factors, vs, bias, first, strip, plan, group, tile)
    else:
        _all_at_once(out, factors, vs, bias, first, strip, plan, group, tile)


def _gate_then_up(
    out: Tensor,
    factors: list[list[Tensor]],
    vs: list[Tensor],
    bias: Tensor,
    first: Any,
    strip: Strip,
    plan: Schedule,
    group: OutputTiles,
    tile: Any,
) -> None:
    """V_gate past all tokens, whose sums wait in PSUM, then V_up: one of the two needs room at a time."""
    gates = []
    weights = load_factor(vs, 0, plan, group, tile)
    for row in strip.rows:
        for piece in row.pieces:
            gates.append(made(weights, factors, 0, plan, strip, piece, group, tile))
    weights = load_factor(vs, 1, plan, group, tile)
    done = 0
    for row in strip.rows:
        block = nl.ndarray((PARTITIONS, group.count * row.tokens), dtype=out.dtype, buffer=nl.sbuf)
        for piece in row.pieces:
            up = made(weights, factors, 1, plan, strip, piece, group, tile)
            block[0 : group.width, nl.ds(piece.start, group.count * piece.tokens)] = gated(
                gates[done], up, bias, group.width, out.dtype
            )
            done = done + 1
        at = group.segment.start + tile
        store_tiles(out, block, at, group.count, group.width, first + row.start, row.tokens, plan.interleaved)


def _all_at_once(
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
    """Every V past a piece of T after the other."""
    weights = load_all_weights(vs, plan, group, tile)
    count, width = group.count, group.width
    for row in strip.rows:
        block = nl.ndarray((PARTITIONS, count * row.tokens), dtype=out.dtype, buffer=nl.sbuf)
        for piece in row.pieces:
            sums = all_made(weights, factors, plan, strip, piece, group, tile)
            if bias is None:
                block[0:width, nl.ds(piece.start, count * piece.tokens)] = copy_on_scalar(sums[0], out.dtype)
            else:
                block[0:width, nl.ds(piece.start, count * piece.tokens)] = gated(
                    sums[0], sums[1], bias, width, out.dtype
                )
        at = group.segment.start + tile
        store_tiles(out, block, at, count, width, first + row.start, row.tokens, plan.interleaved)


def gated(gate: Tensor, up: Tensor, bias: Tensor, width: int, dtype: Any) -> Tensor:
    """silu(gate) * up."""
    activated = nisa.activation(op=nl.silu, data=gate, bias=bias[0:width, 0:1], dtype=nl.float32)
    return nisa.tensor_tensor(activated, up, op=nl.multiply, dtype=dtype)


def load_all_weights(vs: list[Tensor], plan: Schedule, group: OutputTiles, tile: Any) -> list[Any]:
    """The weights of every factor for these tiles, None where they are the factor's pivots."""
    weights = []
    for factor, _ in enumerate(vs):
        weights.append(load_factor(vs, factor, plan, group, tile))
    return weights


def load_factor(vs: list[Tensor], factor: int, plan: Schedule, group: OutputTiles, tile: Any) -> Any:
    """The weights of one of them."""
    weights = None
    if group.segment.pivots[factor] is None:
        at = group.segment.others[factor] + tile
        weights = load_weights(vs[factor], plan.ranks[factor], at, group.count, group.width)
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
    for factor, _ in enumerate(factors):
        sums.append(made(weights[factor], factors, factor, plan, strip, piece, group, tile))
    return sums


def made(
    weights: Any,
    factors: list[list[Tensor]],
    factor: int,
    plan: Schedule,
    strip: Strip,
    piece: Piece,
    group: OutputTiles,
    tile: Any,
) -> Tensor:
    """Vᵀ·T of one factor; no weights: its pivots."""
    ts, held = factors[factor], strip.holders[piece.holder]
    if weights is None:
        own = (group.segment.pivots[factor] + tile) * held + piece.offset
        product = ts[piece.holder][0 : group.width, nl.ds(own, group.count * piece.tokens)]
    else:
        product = _expanded(weights, ts, plan, factor, held, piece, group.count, group.width)
    return product


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
