"""Matmuls from HBM to HBM: X·W [M, N], blocked by a plan of kernels/tiling/dense.py; Product says how X and W lie.

In SBUF a block of an operand has its tiles of 128 rows side by side: the k-th of `size` columns at k·size; of a packed
operand, the k-th tile of the j-th packed column tile at (j·K/128 + k)·width, which is how it lies in HBM.
"""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.accumulate import put
from nxdi_svd_plugin.kernels.stages.expand import add_side_by_side, copy_on_scalar
from nxdi_svd_plugin.kernels.stages.load import load_rows_transposed, load_tiles
from nxdi_svd_plugin.kernels.tiling.dense import X_COLUMNS, Output, Product
from nxdi_svd_plugin.kernels.tiling.loops import Cut, Depth, Loops, TileRun

Tensor = Any


def multiply(out: Tensor, x: Tensor, w: Tensor, plan: Loops, identity: Tensor | None) -> None:
    """out [M, N] = X·W, all in HBM. `identity`: see fp32_identity, for rows that are transposed.

    Row tiles of the output that have a tile of w of their own take it in: of X·U with U = [I ; C], which is Cᵀ·W here.
    """
    if isinstance(plan.product.plan, Output):
        _keep_output(out, x, w, plan, identity)
    elif plan.product.plan.keeps_x:
        _keep_x(out, x, w, plan, identity)
    else:
        _keep_w(out, x, w, plan, identity)


def load_part(block: Tensor, source: Tensor, top: Any, deep: int, first: Any, size: int) -> None:
    """Rows top..top+deep and `size` columns of source [K, n] into block [128, deep/128·size]."""
    for k in nl.affine_range(deep // PARTITIONS):
        block[0:PARTITIONS, nl.ds(k * size, size)] = nl.load(
            source[nl.ds(top + k * PARTITIONS, PARTITIONS), nl.ds(first, size)]
        )
    if deep % PARTITIONS:
        last = deep // PARTITIONS
        block[0 : deep % PARTITIONS, nl.ds(last * size, size)] = nl.load(
            source[nl.ds(top + last * PARTITIONS, deep % PARTITIONS), nl.ds(first, size)]
        )


def _load_block(
    block: Tensor,
    source: Tensor,
    layout: str,
    depth: Depth,
    done: Any,
    first: Any,
    size: int,
    width: int,
    product: Product,
    identity: Tensor | None,
) -> None:
    """`size` columns first... of an operand, of K the block that is `done` tiles after the first of `depth`."""
    tile = depth.tile + done
    if layout == "packed":
        _load_packed(block, source, tile, tiles(depth.rows), first, size, width, tiles(product.deep))
    elif layout == "interleaved":
        rows, total = source.reshape((PARTITIONS, source.shape[0] // PARTITIONS * source.shape[1])), source.shape[1]
        for move in depth.moves:
            load_tiles(block, rows, move.source + done, move.target, move.count, first, size, total, 1)
    elif layout == "rows":
        load_rows_transposed(block, source, first, size, tile * PARTITIONS, depth.rows, X_COLUMNS, identity)
    else:
        load_part(block, source, tile * PARTITIONS, depth.rows, first, size)


def _load_packed(
    block: Tensor, source: Tensor, tile: Any, count: int, first: Any, size: int, width: int, height: int
) -> None:
    """`count` row tiles of every packed column tile; `first` is a multiple of `width`, and the last may be narrower."""
    for c in nl.affine_range(size // width):
        block[0:PARTITIONS, nl.ds(c * (count * width), count * width)] = nl.load(
            source[0:PARTITIONS, nl.ds((first + c * width) * height + tile * width, count * width)]
        )
    if size % width:
        rest, done = size % width, size - size % width
        block[0:PARTITIONS, nl.ds(done * count, count * rest)] = nl.load(
            source[0:PARTITIONS, nl.ds((first + done) * height + tile * rest, count * rest)]
        )


def _load_x(
    x: Tensor, rows: Cut, top: Any, depth: Depth, done: Any, product: Product, dtype: Any, identity: Tensor | None
) -> Tensor:
    """The block of X for the output's rows top..."""
    block = nl.ndarray((PARTITIONS, tiles(depth.rows) * rows.size), dtype=dtype, buffer=nl.sbuf)
    _load_block(block, x, product.x, depth, done, top, rows.size, PARTITIONS, product, identity)
    return block


def _load_w(
    w: Tensor, columns: Cut, left: Any, depth: Depth, done: Any, product: Product, identity: Tensor | None
) -> Tensor:
    """The block of W for the output's columns left..."""
    block = nl.ndarray((PARTITIONS, tiles(depth.rows) * columns.size), dtype=w.dtype, buffer=nl.sbuf)
    _load_block(block, w, product.w, depth, done, left, columns.size, product.w_tile, product, identity)
    return block


def _keep_x(out: Tensor, x: Tensor, w: Tensor, plan: Loops, identity: Tensor | None) -> None:
    """Blocks of X stay in SBUF, W is streamed past each; every sum over K stays in PSUM."""
    for rows in plan.rows:
        for i in nl.affine_range(rows.count):
            top = rows.first + i * rows.size
            kept = _load_x(x, rows, top, plan.depths[0], 0, plan.product, w.dtype, identity)
            _stream_w(out, kept, w, plan, rows, top, identity)


def _keep_w(out: Tensor, x: Tensor, w: Tensor, plan: Loops, identity: Tensor | None) -> None:
    """Blocks of W stay in SBUF, X is streamed past each; every sum over K stays in PSUM."""
    for columns in plan.columns:
        for j in nl.affine_range(columns.count):
            left = columns.first + j * columns.size
            kept = _load_w(w, columns, left, plan.depths[0], 0, plan.product, identity)
            _stream_x(out, x, kept, w, plan, columns, left, identity)


def _stream_w(out: Tensor, kept: Tensor, w: Tensor, plan: Loops, rows: Cut, top: Any, identity: Tensor | None) -> None:
    for columns in plan.columns:
        for j in nl.affine_range(columns.count):
            left = columns.first + j * columns.size
            moving = _load_w(w, columns, left, plan.depths[0], 0, plan.product, identity)
            _store_product(out, kept, moving, w, plan.product, rows, top, columns, left)


def _stream_x(
    out: Tensor, x: Tensor, kept: Tensor, w: Tensor, plan: Loops, columns: Cut, left: Any, identity: Tensor | None
) -> None:
    for rows in plan.rows:
        for i in nl.affine_range(rows.count):
            top = rows.first + i * rows.size
            stationary = _load_x(x, rows, top, plan.depths[0], 0, plan.product, w.dtype, identity)
            _store_product(out, stationary, kept, w, plan.product, rows, top, columns, left)


def _store_product(
    out: Tensor,
    stationary: Tensor,
    moving: Tensor,
    w: Tensor,
    product: Product,
    rows: Cut,
    top: Any,
    columns: Cut,
    left: Any,
) -> None:
    """Store the product of two blocks in SBUF at out[top, left], 128 rows at a time, a piece of columns at once."""
    for run in rows.runs:
        for m in nl.affine_range(run.count):
            for piece in columns.pieces:
                for q in nl.affine_range(piece.count):
                    shift, tile = q * piece.size, q * (piece.size // product.width)
                    _piece(out, stationary, moving, w, product, rows, top, run, m, columns, left, piece, shift, tile)


def _piece(
    out: Tensor,
    stationary: Tensor,
    moving: Tensor,
    w: Tensor,
    product: Product,
    rows: Cut,
    top: Any,
    run: TileRun,
    m: Any,
    columns: Cut,
    left: Any,
    piece: Cut,
    shift: Any,
    tile: Any,
) -> None:
    """The columns `shift`, or `tile` tiles, after the first of `piece`, of row tile run.first + `m`."""
    at, start = run.first + m, left + piece.first + shift
    block = nl.ndarray((PARTITIONS, piece.size), dtype=out.dtype, buffer=nl.sbuf)
    if run.own is not None:
        block[0:PARTITIONS, 0 : piece.size] = _own_tile(w, run.own + m, start, piece.size)
    tile = tile + piece.first // product.width
    deep, first = product.deep, run.own is None
    _row(block, 0, stationary, moving, product, deep, rows, at, run.size, columns, piece.runs, tile, first)
    nl.store(
        out[nl.ds(top + at * PARTITIONS, run.size), nl.ds(start, piece.size)],
        value=block[0 : run.size, 0 : piece.size],
    )


def _keep_output(out: Tensor, x: Tensor, w: Tensor, plan: Loops, identity: Tensor | None) -> None:
    """fp32 sums of a block of the output stay in SBUF while K is streamed; one block after the other."""
    for rows in plan.rows:
        for columns in plan.columns:
            for i in nl.sequential_range(rows.count):
                for j in nl.sequential_range(columns.count):
                    top, left = rows.first + i * rows.size, columns.first + j * columns.size
                    _output_block(out, x, w, plan, rows, top, columns, left, identity)


def _output_block(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    plan: Loops,
    rows: Cut,
    top: Any,
    columns: Cut,
    left: Any,
    identity: Tensor | None,
) -> None:
    """A block of K is summed in PSUM, the blocks in SBUF, both in fp32."""
    sums = nl.ndarray((PARTITIONS, tiles(rows.size) * columns.size), dtype=nl.float32, buffer=nl.sbuf)
    for depth in plan.depths:
        for b in nl.sequential_range(depth.count):
            done = b * tiles(depth.rows)
            _sum_block(sums, x, w, plan.product, rows, top, columns, left, depth, done, identity)
    for run in rows.runs:
        for m in nl.affine_range(run.count):
            at = run.first + m
            total = sums[0 : run.size, nl.ds(at * columns.size, columns.size)]
            if run.own is None:
                rounded = copy_on_scalar(total, out.dtype)
            else:
                own = _own_tile(w, run.own + m, left, columns.size)
                rounded = nisa.tensor_tensor(total, own, op=nl.add, dtype=out.dtype)
            nl.store(out[nl.ds(top + at * PARTITIONS, run.size), nl.ds(left, columns.size)], value=rounded)


def _sum_block(
    sums: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    rows: Cut,
    top: Any,
    columns: Cut,
    left: Any,
    depth: Depth,
    done: Any,
    identity: Tensor | None,
) -> None:
    """The block of K that is `done` tiles after the first of `depth`, put into the sums or added to them."""
    stationary = _load_x(x, rows, top, depth, done, product, w.dtype, identity)
    moving = _load_w(w, columns, left, depth, done, product, identity)
    for run in rows.runs:
        for m in nl.affine_range(run.count):
            at, column = run.first + m, (run.first + m) * columns.size
            _row(
                sums,
                column,
                stationary,
                moving,
                product,
                depth.rows,
                rows,
                at,
                run.size,
                columns,
                columns.runs,
                0,
                depth.first,
            )


def _row(
    target: Tensor,
    at: Any,
    x: Tensor,
    w: Tensor,
    product: Product,
    deep: int,
    rows: Cut,
    m: Any,
    count: int,
    columns: Cut,
    runs: tuple[TileRun, ...],
    tile: Any,
    first: bool,
) -> None:
    """Row tile `m`, `count` rows, of the blocks' product put into target, or added to it, from column `at` on.

    `runs`: tiles of the columns, counted from number `tile` of the block.
    """
    for run in runs:
        for j in nl.affine_range(run.count):
            n = run.first + j
            total = nl.zeros((PARTITIONS, run.size), dtype=nl.float32, buffer=nl.psum)
            add_products(total, x, w, product, deep, m, count, rows.size, tile + n, run.size, columns.size)
            put(target, total, at + n * product.width, count, run.size, first)


def _own_tile(w: Tensor, tile: Any, left: Any, size: int) -> Tensor:
    """A tile of w, interleaved, that rows of the output take in."""
    rows, total = w.reshape((PARTITIONS, w.shape[0] // PARTITIONS * w.shape[1])), w.shape[1]
    return nl.load(rows[0:PARTITIONS, nl.ds(tile * total + left, size)])


def place(k: Any, j: Any, count: int, size: int, step: int, width: int, layout: str) -> Any:
    """Where row tile `k` of column tile `j`, `width` of `step` columns, begins in a block of `size` columns."""
    if layout == "packed":
        return j * (count * step) + k * width
    return k * size + j * step


def add_products(
    total: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    deep: int,
    m: Any,
    count: int,
    rows: int,
    n: Any,
    width: int,
    columns: int,
) -> None:
    """Sum over `deep` rows of K into the PSUM tile `total`: row tile `m` of the block x, column tile `n` of w."""
    side = width // product.w_tile if product.w == "packed" and width > product.w_tile else 1
    height, wide = tiles(deep), width // side
    for k in nl.affine_range(deep // PARTITIONS):
        at = place(k, m, height, rows, PARTITIONS, count, product.x)
        left = place(k, n, height, columns, product.width, wide, product.w)
        stationary = x[0:PARTITIONS, nl.ds(at, count)]
        add_side_by_side(total, stationary, w, PARTITIONS, count, left, height, side, wide)
    if deep % PARTITIONS:
        last, rest = deep // PARTITIONS, deep % PARTITIONS
        at = place(last, m, height, rows, PARTITIONS, count, product.x)
        left = place(last, n, height, columns, product.width, wide, product.w)
        add_side_by_side(total, x[0:rest, nl.ds(at, count)], w, rest, count, left, height, side, wide)
