"""T = (X·U)ᵀ with Xᵀ of the tokens in SBUF: U is streamed, every sum stays in PSUM and is rounded once."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.tiling.pieces import Piece
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule

Tensor = Any
Pieces = tuple[Piece, ...]


def project(
    ts: list[Tensor], u: Tensor, xt: Tensor, pieces: Pieces, plan: Schedule, rank: int, pivots: int = 0
) -> None:
    """(X·U)ᵀ of the tokens of xt into the tensors `ts`; u packed, read once.

    `pieces` say where the tokens go, and are short enough that the sums of `plan.u_tiles` rank tiles fit into a bank
    each. The first `pivots` rank tiles also take in the tiles of xt that follow those of U: U = [I ; C].
    """
    step = plan.u_tiles
    for g in nl.affine_range(pivots // step):
        _columns(ts, u, xt, pieces, plan, rank, g * step, step, PARTITIONS, True)
    if pivots % step:
        _columns(ts, u, xt, pieces, plan, rank, pivots - pivots % step, pivots % step, PARTITIONS, True)
    full = rank // PARTITIONS - pivots
    for g in nl.affine_range(full // step):
        _columns(ts, u, xt, pieces, plan, rank, pivots + g * step, step, PARTITIONS, False)
    if full % step:
        _columns(ts, u, xt, pieces, plan, rank, pivots + full - full % step, full % step, PARTITIONS, False)
    if rank % PARTITIONS:
        _columns(ts, u, xt, pieces, plan, rank, pivots + full, 1, rank % PARTITIONS, False)


def _columns(
    ts: list[Tensor],
    u: Tensor,
    xt: Tensor,
    pieces: Pieces,
    plan: Schedule,
    rank: int,
    tile: Any,
    count: int,
    width: int,
    pivot: bool,
) -> None:
    """Rank tiles `tile`..., `count` of `width` columns each."""
    sums = []
    for piece in pieces:
        sums.append(nl.zeros((PARTITIONS, count * piece.tokens), dtype=nl.float32, buffer=nl.psum))
    rows = plan.u_load * PARTITIONS
    for load in nl.affine_range(plan.u_rows // rows):
        _add_load(sums, u, xt, pieces, plan, tile, count, width, load * plan.u_load, rows)
    if plan.u_rows % rows:
        done = plan.u_rows // rows * plan.u_load
        _add_load(sums, u, xt, pieces, plan, tile, count, width, done, plan.u_rows % rows)
    for p, piece in enumerate(pieces):
        _evict(ts[piece.holder], sums[p], xt, piece, plan, rank, tile, count, width, pivot)


def _add_load(
    sums: list[Tensor],
    u: Tensor,
    xt: Tensor,
    pieces: Pieces,
    plan: Schedule,
    tile: Any,
    count: int,
    width: int,
    start: Any,
    extent: int,
) -> None:
    """Input tiles `start`..., `extent` rows of them: one load of U, multiplied with Xᵀ."""
    height = tiles(plan.u_rows)
    loaded = nl.load(
        u[0:PARTITIONS, nl.ds(tile * (height * PARTITIONS) + start * width, count * tiles(extent) * width)]
    )
    for j in nl.affine_range(count):
        for k in nl.affine_range(extent // PARTITIONS):
            _multiply(sums, loaded, xt, pieces, plan, j, j * height + k, start + k, PARTITIONS, width)
        if extent % PARTITIONS:
            last = extent // PARTITIONS
            _multiply(sums, loaded, xt, pieces, plan, j, j * height + last, start + last, extent % PARTITIONS, width)


def _multiply(
    sums: list[Tensor],
    loaded: Tensor,
    xt: Tensor,
    pieces: Pieces,
    plan: Schedule,
    j: Any,
    at: Any,
    row: Any,
    deep: int,
    width: int,
) -> None:
    """Add Uᵀ·Xᵀ of input tile `row` to the sums of rank tile `j` of the load, where U's tile is number `at`."""
    tokens = xt.shape[1] // plan.input_tiles
    for p, piece in enumerate(pieces):
        sums[p][0:width, nl.ds(j * piece.tokens, piece.tokens)] += nisa.nc_matmul(
            loaded[0:deep, nl.ds(at * width, width)],
            xt[0:deep, nl.ds(row * tokens + piece.start, piece.tokens)],
        )


def _evict(
    t: Tensor,
    total: Tensor,
    xt: Tensor,
    piece: Piece,
    plan: Schedule,
    rank: int,
    tile: Any,
    count: int,
    width: int,
    pivot: bool,
) -> None:
    """Round the sums into t, with the pivots' own tiles of Xᵀ added; `count` tiles are side by side in all of them."""
    held, tokens = t.shape[1] // tiles(rank), xt.shape[1] // plan.input_tiles
    size = count * piece.tokens
    if pivot:
        own = (tiles(plan.u_rows) + tile) * tokens + piece.start
        t[0:width, nl.ds(tile * held + piece.offset, size)] = nisa.tensor_tensor(
            total[0:width, 0:size], xt[0:width, nl.ds(own, size)], op=nl.add, dtype=t.dtype
        )
    else:
        t[0:width, nl.ds(tile * held + piece.offset, size)] = nisa.tensor_copy(
            total[0:width, 0:size], dtype=t.dtype, engine=nisa.vector_engine
        )
