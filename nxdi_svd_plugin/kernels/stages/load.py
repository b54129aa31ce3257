"""Loading X into SBUF with the contraction axis on the partitions."""

from typing import Any

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule

Tensor = Any


def fp32_identity(x: Tensor) -> Tensor | None:
    """The identity matrix in SBUF that fp32 tiles are transposed with; None for 16-bit inputs, which need none."""
    if x.dtype != nl.float32:
        return None
    return nl.load(nl.shared_identity_matrix(PARTITIONS, dtype=nl.float32))


def load_rows_transposed(
    xt: Tensor, x: Tensor, first: Any, tokens: int, column: Any, columns: int, wide: int, identity: Tensor | None
) -> None:
    """xt [128, tiles·tokens] = Xᵀ of rows first... and columns column..., `columns` of them, of x [S, inputs].

    `wide` columns (whole tiles) are loaded at a time; every 128 x 128 tile is transposed on the tensor engine.
    """
    for i in nl.affine_range(tokens // PARTITIONS):
        _token_tile(xt, x, first, tokens, i, PARTITIONS, column, columns, wide, identity)
    if tokens % PARTITIONS:
        _token_tile(xt, x, first, tokens, tokens // PARTITIONS, tokens % PARTITIONS, column, columns, wide, identity)


def _token_tile(
    xt: Tensor,
    x: Tensor,
    first: Any,
    tokens: int,
    i: Any,
    count: int,
    column: Any,
    columns: int,
    wide: int,
    identity: Tensor | None,
) -> None:
    """Token tile `i`, which has `count` tokens."""
    for c in nl.affine_range(columns // wide):
        rows = nl.load(x[nl.ds(first + i * PARTITIONS, count), nl.ds(column + c * wide, wide)])
        _transpose(xt, rows, tokens, i, count, c * (wide // PARTITIONS), wide, identity)
    if columns % wide:
        done = columns // wide * wide
        rows = nl.load(x[nl.ds(first + i * PARTITIONS, count), nl.ds(column + done, columns % wide)])
        _transpose(xt, rows, tokens, i, count, done // PARTITIONS, columns % wide, identity)


def _transpose(
    xt: Tensor, rows: Tensor, tokens: int, i: Any, count: int, tile: Any, width: int, identity: Tensor | None
) -> None:
    """Input tiles `tile`... of xt from rows [count, width]. A bank's tiles are side by side in xt if all tokens are."""
    group = MOVING // count if count == tokens else 1
    full = width // PARTITIONS
    for g in nl.affine_range(full // group):
        _bank(xt, rows, tokens, i, count, tile, g * group, group, PARTITIONS, identity)
    if full % group:
        _bank(xt, rows, tokens, i, count, tile, full - full % group, full % group, PARTITIONS, identity)
    if width % PARTITIONS:
        _bank(xt, rows, tokens, i, count, tile, full, 1, width % PARTITIONS, identity)


def _bank(
    xt: Tensor,
    rows: Tensor,
    tokens: int,
    i: Any,
    count: int,
    tile: Any,
    start: Any,
    number: int,
    size: int,
    identity: Tensor | None,
) -> None:
    """`number` tiles of `size` columns each, transposed into one PSUM bank and copied out at once.

    fp32 goes through a matmul with 0/1 entries: nc_transpose of fp32 is reported to be inexact on Trn1 (nki-samples
    0898a77, contributed/neuron-team-kernels/flash_paged_attn_varlen/utils.py).
    """
    bank = nl.ndarray((PARTITIONS, number * count), dtype=nl.float32, buffer=nl.psum)
    for j in nl.affine_range(number):
        if identity is None:
            bank[0:size, nl.ds(j * count, count)] = nisa.nc_transpose(
                rows[0:count, nl.ds((start + j) * PARTITIONS, size)], engine=nisa.tensor_engine
            )
        else:
            bank[0:size, nl.ds(j * count, count)] = nisa.nc_matmul(
                rows[0:count, nl.ds((start + j) * PARTITIONS, size)],
                identity[0:count, 0:count],
                is_moving_onezero=True,
                is_transpose=True,
            )
    xt[0:size, nl.ds((tile + start) * tokens + i * PARTITIONS, number * count)] = nisa.tensor_copy(
        bank[0:size, 0 : number * count], dtype=xt.dtype, engine=nisa.vector_engine
    )


def load_columns(xt: Tensor, h_t: Tensor, first: Any, tokens: int, plan: Schedule) -> None:
    """xt [128, input_tiles·tokens] = `tokens` columns of h_t [inputs, S] from column `first`.

    The contraction axis comes first already. The tiles that are pivots go last, so that the others are one run for the
    contraction with C. Where 128 divides the inputs, row p·(inputs/128) + j is on partition p, tile j (packing.py).
    """
    inputs, total = h_t.shape
    if inputs % PARTITIONS == 0:
        rows = h_t.reshape((PARTITIONS, inputs // PARTITIONS * total))
        for move in plan.moves:
            load_tiles(xt, rows, move.source, move.target, move.count, first, tokens, total, plan.h_tiles)
    else:
        for k in nl.affine_range(inputs // PARTITIONS):
            xt[0:PARTITIONS, nl.ds(k * tokens, tokens)] = nl.load(
                h_t[nl.ds(k * PARTITIONS, PARTITIONS), nl.ds(first, tokens)]
            )
        done = inputs // PARTITIONS
        xt[0 : inputs % PARTITIONS, nl.ds(done * tokens, tokens)] = nl.load(
            h_t[nl.ds(done * PARTITIONS, inputs % PARTITIONS), nl.ds(first, tokens)]
        )


def load_tiles(
    xt: Tensor,
    rows: Tensor,
    source: Any,
    target: Any,
    count: int,
    first: Any,
    tokens: int,
    total: int,
    together: int,
) -> None:
    """Tiles source... of rows [128, tiles·total], `count` of them, to tiles target... of xt [128, tiles·tokens].

    `together` tiles are one load where all tokens are wanted, so that the DMA runs are long; one elsewhere.
    """
    step = together if tokens == total else 1
    for c in nl.affine_range(count // step):
        xt[0:PARTITIONS, nl.ds((target + c * step) * tokens, step * tokens)] = nl.load(
            rows[0:PARTITIONS, nl.ds((source + c * step) * total + first, step * tokens)]
        )
    if count % step:
        done = count - count % step
        xt[0:PARTITIONS, nl.ds((target + done) * tokens, count % step * tokens)] = nl.load(
            rows[0:PARTITIONS, nl.ds((source + done) * total + first, count % step * tokens)]
        )
