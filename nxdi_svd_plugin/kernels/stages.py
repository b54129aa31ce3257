"""The device-side stages that `xuv`, `up_gate` and `down` are built from: traced Python, no copies between kernels.

Orientation: nc_matmul(stationary [K, M], moving [K, N]) = stationaryᵀ · moving, in PSUM, fp32. The intermediate is only
ever built transposed, T = (X·U)ᵀ [R, tokens] = nc_matmul(U, Xᵀ): both orientations of the output need it so,
Yᵀ = nc_matmul(V, T) and Y = nc_matmul(T, V). X is the only thing transposed, and only if it comes as [S, H].

SBUF tensors: xt [128, input_tiles, tokens], t [128, rank_tiles, tokens]; HBM weights as laid out by kernels/packing.py.
All temporaries are made inside the loop that uses them (one tensor per iteration, several in flight on the device).
"""

from collections.abc import Callable
from typing import Any

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.packing import interleaved
from nxdi_svd_plugin.kernels.tiling.blocks import Buffers
from nxdi_svd_plugin.kernels.tiling.pieces import Piece, cut, row_tokens, whole_tiles
from nxdi_svd_plugin.kernels.tiling.segments import Segment

Tensor = Any


def for_tiles(total: int, step: int, body: Callable[[Any, int], None]) -> None:
    """body(i, size) for every whole `step` of `total` in a device loop, then once for the rest, which is shorter."""
    if total // step:
        for i in nl.affine_range(total // step):
            body(i, step)
    if total % step:
        body(total // step, total % step)


def for_strips(groups: Any, body: Callable[[Any, tuple[int, ...]], None]) -> None:
    """body(first token, sub-strip sizes) for every strip, one after the other: the plan gives all of SBUF to one."""
    first = 0
    for count, strip in groups:
        if count == 1:
            body(first, strip)
        else:
            for i in nl.sequential_range(count):
                body(first + i * sum(strip), strip)
        first += count * sum(strip)


def sub_strips(first: Any, strip: tuple[int, ...]) -> list[tuple[Any, int]]:
    """(first token, tokens) of every sub-strip of the strip that begins at token `first`."""
    return [(first + sum(strip[:k]), size) for k, size in enumerate(strip)]


def fp32_identity(x: Tensor) -> Tensor | None:
    """The identity matrix in SBUF that fp32 tiles are transposed with; None for 16-bit inputs, which need none."""
    if x.dtype != nl.float32:
        return None
    return nl.load(nl.shared_identity_matrix(PARTITIONS, dtype=nl.float32))


def transposed(tile: Tensor, identity: Tensor | None) -> Tensor:
    """A [rows, columns] SBUF tile transposed on the tensor engine into fp32 PSUM.

    fp32 goes through a matmul with 0/1 entries: nc_transpose of fp32 is reported to be inexact on Trn1.
    """
    if identity is None:
        return nisa.nc_transpose(tile)
    rows = tile.shape[0]
    return nisa.nc_matmul(tile, identity[0:rows, 0:rows], is_moving_onezero=True, is_transpose=True)


def load_rows_transposed(x: Tensor, first: Any, tokens: int, buffers: Buffers, identity: Tensor | None) -> Tensor:
    """Xᵀ of `tokens` rows of x [S, inputs] from row `first`, as xt: several transposes to a PSUM bank, one eviction."""
    inputs = x.shape[1]
    xt = nl.ndarray((PARTITIONS, tiles(inputs), tokens), dtype=x.dtype, buffer=nl.sbuf)
    wide = buffers.x_tiles * PARTITIONS

    def token_tile(i: Any, count: int) -> None:
        group = MOVING // count

        def columns(c: Any, width: int) -> None:
            rows = nl.load(x[nl.ds(first + i * PARTITIONS, count), nl.ds(c * wide, width)])

            def bank(start: Any, number: int, size: int) -> None:
                banked = nl.ndarray((PARTITIONS, number, count), dtype=nl.float32, buffer=nl.psum)
                for j in nl.affine_range(number):
                    banked[0:size, j, 0:count] = transposed(
                        rows[0:count, nl.ds((start + j) * PARTITIONS, size)], identity
                    )
                xt[0:size, nl.ds(c * buffers.x_tiles + start, number), nl.ds(i * PARTITIONS, count)] = nisa.tensor_copy(
                    banked[0:size, 0:number, 0:count], dtype=x.dtype, engine=nisa.vector_engine
                )

            full, tail = divmod(width, PARTITIONS)
            for_tiles(full, group, lambda g, number: bank(g * group, number, PARTITIONS))
            if tail:
                bank(full, 1, tail)

        for_tiles(inputs, wide, columns)

    for_tiles(tokens, PARTITIONS, token_tile)
    return xt


def load_columns(h_t: Tensor, first: Any, tokens: int, segments: list[Segment]) -> Tensor:
    """`tokens` columns of h_t [inputs, S] from column `first`, as xt: the contraction axis comes first already.

    The tiles that are pivots come last, so that the others are one run for the contraction with C.
    """
    inputs, count = h_t.shape
    xt = nl.ndarray((PARTITIONS, tiles(inputs), tokens), dtype=h_t.dtype, buffer=nl.sbuf)
    if interleaved(inputs):
        rows = h_t.reshape((PARTITIONS, inputs // PARTITIONS, count))
        others = sum(part.stop - part.start for part in segments if part.pivots[0] is None)
        for part in segments:
            begin = part.others[0] if part.pivots[0] is None else others + part.pivots[0]
            xt[0:PARTITIONS, begin : begin + part.stop - part.start, 0:tokens] = nl.load(
                rows[0:PARTITIONS, part.start : part.stop, nl.ds(first, tokens)]
            )
        return xt

    def tile(k: Any, rows: int) -> None:
        xt[0:rows, k, 0:tokens] = nl.load(h_t[nl.ds(k * PARTITIONS, rows), nl.ds(first, tokens)])

    for_tiles(inputs, PARTITIONS, tile)
    return xt


def new_holders(ts: list[Tensor], part: list[Piece], sizes: list[int], rank: int, dtype: Any) -> None:
    """Append the t tensors that `part` is the first to need."""
    new = [sizes[piece.holder] for piece in part if piece.holder >= len(ts)]
    ts += [nl.ndarray((PARTITIONS, tiles(rank), size), dtype=dtype, buffer=nl.sbuf) for size in new]


def project(
    u: Tensor, xt: Tensor, inputs: int, buffers: Buffers, ts: list[Tensor], part: list[Piece], pivots: int = 0
) -> None:
    """(X·U)ᵀ of the tokens of xt; u packed. U is read once, every sum stays in PSUM and is rounded once.

    `part` says where the tokens go (tiling.pieces.holding); `ts` are the t's of the strip, made by `new_holders`.
    The first `pivots` rank tiles also take in the tiles of xt that follow those of U: U = [I ; C].
    """
    height = tiles(inputs)
    rank = u.shape[1] // height
    pieces = [piece for whole in part for piece in cut(whole, MOVING // buffers.u_tiles)]

    def columns(tile: Any, count: int, width: int, pivot: bool = False) -> None:
        sums = [nl.zeros((PARTITIONS, count, piece.tokens), dtype=nl.float32, buffer=nl.psum) for piece in pieces]

        def rows(load: Any, extent: int) -> None:
            start = tile * (height * PARTITIONS) + load * (buffers.u_rows * width)
            loaded = nl.load(u[0:PARTITIONS, nl.ds(start, count * tiles(extent) * width)])

            def add(j: Any, k: Any, deep: int) -> None:
                weight = loaded[0:deep, nl.ds(j * (height * width) + k * width, width)]
                for total, piece in zip(sums, pieces, strict=True):
                    total[0:width, j, 0 : piece.tokens] += nisa.nc_matmul(
                        weight, xt[0:deep, load * buffers.u_rows + k, nl.ds(piece.start, piece.tokens)]
                    )

            for j in nl.affine_range(count):
                for_tiles(extent, PARTITIONS, lambda k, deep: add(j, k, deep))  # noqa: B023 (called at once)

        for_tiles(inputs, buffers.u_rows * PARTITIONS, rows)
        for total, piece in zip(sums, pieces, strict=True):
            t, made = ts[piece.holder], total[0:width, 0:count, 0 : piece.tokens]
            place = slice(0, width), nl.ds(tile, count), nl.ds(piece.offset, piece.tokens)
            if pivot:
                own = xt[0:width, nl.ds(height + tile, count), nl.ds(piece.start, piece.tokens)]
                t[place] = nisa.tensor_tensor(made, own, op=nl.add, dtype=t.dtype)
            else:
                t[place] = nisa.tensor_copy(made, dtype=t.dtype, engine=nisa.vector_engine)

    full, tail = divmod(rank, PARTITIONS)
    step = buffers.u_tiles
    for_tiles(pivots, step, lambda g, count: columns(g * step, count, PARTITIONS, pivot=True))
    for_tiles(full - pivots, step, lambda g, count: columns(pivots + g * step, count, PARTITIONS))
    if tail:
        columns(full, 1, tail)


def expand_transposed(
    factors: list[tuple[Tensor, list[Tensor], int]],
    out: Tensor,
    first: Any,
    rows: list[list[Piece]],
    step: int,
    evict: Callable[[Tensor, list[Tensor]], Tensor],
    interleave: bool,
    segments: list[Segment],
) -> None:
    """Columns `first`... of out [outputs, S]: Yᵀ = Vᵀ·T for every (v packed, t of each sub-strip, rank) in `factors`.

    `evict` turns the tiles [rows, tiles, tokens] of all factors into one SBUF tile: fp32 PSUM, or T itself where the
    segment is the factor's pivots. A V load makes `step` output tiles, which share a PSUM bank if there is more than
    one (few tokens). `rows` are the tokens that are stored together (tiling.blocks.stored_rows).
    """

    def group(segment: Segment, tile: Any, count: int, width: int) -> None:
        """Output tiles segment.start + `tile`..."""
        loaded = [
            nl.load(v[0:PARTITIONS, nl.ds((begin + tile) * (tiles(rank) * PARTITIONS), count * tiles(rank) * width)])
            if pivot is None
            else None
            for (v, _, rank), pivot, begin in zip(factors, segment.pivots, segment.others, strict=True)
        ]
        stored = first
        for row in rows:
            block = nl.ndarray((PARTITIONS, count, row_tokens(row)), dtype=out.dtype, buffer=nl.sbuf)
            for piece in row:
                made = [
                    _expanded(weights, ts[piece.holder], rank, count, width, piece)
                    if pivot is None
                    else ts[piece.holder][0:width, nl.ds(pivot + tile, count), nl.ds(piece.offset, piece.tokens)]
                    for weights, (_, ts, rank), pivot in zip(loaded, factors, segment.pivots, strict=True)
                ]
                block[0:width, 0:count, nl.ds(piece.start, piece.tokens)] = evict(block, made)
            store_rows(out, block, segment.start + tile, count, width, stored, interleave)
            stored += row_tokens(row)

    whole, rest = divmod(out.shape[0], PARTITIONS)
    for segment in segments:
        full = min(segment.stop, whole) - segment.start
        for_tiles(full, step, lambda g, count: group(segment, g * step, count, PARTITIONS))  # noqa: B023 (called at once)
    if rest:
        group(segments[-1], whole - segments[-1].start, 1, rest)


def _expanded(weights: Tensor, t: Tensor, rank: int, count: int, width: int, piece: Piece) -> Tensor:
    """`count` tiles of Vᵀ·T for the tokens of a piece of t, in one PSUM tile."""
    total = nl.zeros((PARTITIONS, count, piece.tokens), dtype=nl.float32, buffer=nl.psum)

    def add(j: Any, k: Any, deep: int) -> None:
        total[0:width, j, 0 : piece.tokens] += nisa.nc_matmul(
            weights[0:deep, nl.ds(j * (tiles(rank) * width) + k * width, width)],
            t[0:deep, k, nl.ds(piece.offset, piece.tokens)],
        )

    for j in nl.affine_range(count):
        for_tiles(rank, PARTITIONS, lambda k, deep: add(j, k, deep))  # noqa: B023 (called at once)
    return total[0:width, 0:count, 0 : piece.tokens]


def store_rows(out: Tensor, block: Tensor, tile: Any, count: int, width: int, first: Any, interleave: bool) -> None:
    """Store block [128, count, tokens] as output tiles `tile`... of out [outputs, S]; see kernels/packing.py."""
    outputs, total = out.shape
    tokens = block.shape[2]
    if interleave:
        rows = out.reshape((PARTITIONS, outputs // PARTITIONS, total))
        nl.store(rows[0:PARTITIONS, nl.ds(tile, count), nl.ds(first, tokens)], value=block)
        return
    for j in nl.affine_range(count):
        nl.store(out[nl.ds((tile + j) * PARTITIONS, width), nl.ds(first, tokens)], value=block[0:width, j, 0:tokens])


def expand(v: Tensor, ts: list[Tensor], rank: int, out: Tensor, first: Any, width: int, buffers: Buffers) -> None:
    """Rows `first`... of out [S, outputs]: Y = Tᵀ·V; v packed in tiles of `width` columns.

    Tokens are the stationary operand. Every V tile is read once per strip and used for all its tokens; the rows of
    `v_tiles` tiles are stored together, so that the DMA runs are long.
    """
    outputs, deepest = out.shape[1], tiles(rank)
    wide = buffers.v_tiles * width
    pieces = whole_tiles([t.shape[2] for t in ts])

    def block(b: Any, columns: int) -> None:
        rows = nl.ndarray((PARTITIONS, len(pieces), columns), dtype=out.dtype, buffer=nl.sbuf)

        def tile(c: Any, size: int) -> None:
            loaded = nl.load(v[0:PARTITIONS, nl.ds((b * wide + c * width) * deepest, deepest * size)])
            for m, piece in enumerate(pieces):
                total = nl.zeros((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum)
                _add_rows(total, ts[piece.holder], piece, loaded, rank, size)
                rows[0 : piece.tokens, m, nl.ds(c * width, size)] = copy_on_scalar(
                    total[0 : piece.tokens, 0:size], out.dtype
                )

        for_tiles(columns, width, tile)
        for m, piece in enumerate(pieces):
            nl.store(
                out[nl.ds(first + piece.start, piece.tokens), nl.ds(b * wide, columns)],
                value=rows[0 : piece.tokens, m, 0:columns],
            )

    for_tiles(outputs, wide, block)


def _add_rows(total: Tensor, t: Tensor, piece: Piece, loaded: Tensor, rank: int, size: int) -> None:
    """Tᵀ·V of the tokens of a piece of t and `size` columns, summed over the rank."""

    def add(k: Any, deep: int) -> None:
        total[0 : piece.tokens, 0:size] += nisa.nc_matmul(
            t[0:deep, k, nl.ds(piece.offset, piece.tokens)], loaded[0:deep, nl.ds(k * size, size)]
        )

    for_tiles(rank, PARTITIONS, add)


def copy_on_scalar(tile: Tensor, dtype: Any) -> Tensor:
    """A copy by the scalar engine (its tensor_copy does not exist on NeuronCore-v2), rounded to `dtype`."""
    return nisa.activation(op=nl.copy, data=tile, dtype=dtype)
