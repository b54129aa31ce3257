"""Matmuls from HBM to HBM: X·W [M, N], blocked by a plan of kernels/tiling/dense.py; Product says how X and W lie.

In SBUF a block of an operand has its tiles of 128 rows side by side: the k-th of `size` columns at k·size; of a packed
operand, the k-th tile of the j-th packed column tile at (j·K/128 + k)·width, which is how it lies in HBM.
"""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.accumulate import add_to_sums
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.stages.load import load_rows_transposed, load_tiles
from nxdi_svd_plugin.kernels.tiling.dense import X_COLUMNS, Operand, Output, Product

Tensor = Any


def multiply(out: Tensor, x: Tensor, w: Tensor, product: Product, identity: Tensor | None) -> None:
    """out [M, N] = X·W, all in HBM. `identity`: see fp32_identity, for rows that are transposed."""
    if isinstance(product.plan, Output):
        _keep_output(out, x, w, product, product.plan, identity)
    else:
        _keep_operand(out, x, w, product, product.plan, identity)


def load_block(
    block: Tensor,
    source: Tensor,
    layout: str,
    tile: Any,
    deep: int,
    first: Any,
    size: int,
    width: int,
    product: Product,
    identity: Tensor | None,
) -> None:
    """Input tiles `tile`..., `deep` rows of them, of `size` columns first... of an operand."""
    if layout == "packed":
        _load_packed(block, source, tile, tiles(deep), first, size, width, tiles(product.deep))
    elif layout == "interleaved":
        total = source.shape[1]
        rows = source.reshape((PARTITIONS, product.deep // PARTITIONS * total))
        load_tiles(block, rows, tile, 0, tiles(deep), first, size, total, 1)
    elif layout == "rows":
        load_rows_transposed(block, source, first, size, tile * PARTITIONS, deep, X_COLUMNS, identity)
    else:
        load_part(block, source, tile * PARTITIONS, deep, first, size)


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


def _keep_operand(out: Tensor, x: Tensor, w: Tensor, product: Product, plan: Operand, identity: Tensor | None) -> None:
    """Blocks of one operand stay in SBUF, the other is streamed past each; every sum over K stays in PSUM."""
    kept = product.rows if plan.keeps_x else product.columns
    for i in nl.affine_range(kept // plan.block):
        _kept_block(out, x, w, product, plan, i * plan.block, plan.block, identity)
    if kept % plan.block:
        _kept_block(out, x, w, product, plan, kept // plan.block * plan.block, kept % plan.block, identity)


def _kept_block(
    out: Tensor, x: Tensor, w: Tensor, product: Product, plan: Operand, at: Any, size: int, identity: Tensor | None
) -> None:
    """Rows (or columns) `at`... of the output."""
    kept = nl.ndarray((PARTITIONS, tiles(product.deep) * size), dtype=w.dtype, buffer=nl.sbuf)
    stream = plan.stream
    if plan.keeps_x:
        load_block(kept, x, product.x, 0, product.deep, at, size, PARTITIONS, product, identity)
        for c in nl.affine_range(product.columns // stream):
            _stream_w(out, kept, w, product, at, size, c * stream, stream, identity)
        if product.columns % stream:
            done = product.columns // stream * stream
            _stream_w(out, kept, w, product, at, size, done, product.columns % stream, identity)
    else:
        load_block(kept, w, product.w, 0, product.deep, at, size, product.width, product, identity)
        for c in nl.affine_range(product.rows // stream):
            _stream_x(out, x, kept, product, at, size, c * stream, stream, identity)
        if product.rows % stream:
            done = product.rows // stream * stream
            _stream_x(out, x, kept, product, at, size, done, product.rows % stream, identity)


def _stream_w(
    out: Tensor,
    kept: Tensor,
    w: Tensor,
    product: Product,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    identity: Tensor | None,
) -> None:
    moving = nl.ndarray((PARTITIONS, tiles(product.deep) * columns), dtype=w.dtype, buffer=nl.sbuf)
    load_block(moving, w, product.w, 0, product.deep, left, columns, product.width, product, identity)
    _store_product(out, kept, moving, product, top, rows, left, columns)


def _stream_x(
    out: Tensor,
    x: Tensor,
    kept: Tensor,
    product: Product,
    left: Any,
    columns: int,
    top: Any,
    rows: int,
    identity: Tensor | None,
) -> None:
    stationary = nl.ndarray((PARTITIONS, tiles(product.deep) * rows), dtype=kept.dtype, buffer=nl.sbuf)
    load_block(stationary, x, product.x, 0, product.deep, top, rows, PARTITIONS, product, identity)
    _store_product(out, stationary, kept, product, top, rows, left, columns)


def _store_product(
    out: Tensor, x: Tensor, w: Tensor, product: Product, top: Any, rows: int, left: Any, columns: int
) -> None:
    """Store the product of the SBUF blocks x and w at out[top, left], 128 rows at a time."""
    for m in nl.affine_range(rows // PARTITIONS):
        _store_rows(out, x, w, product, top, rows, left, columns, m, PARTITIONS)
    if rows % PARTITIONS:
        _store_rows(out, x, w, product, top, rows, left, columns, rows // PARTITIONS, rows % PARTITIONS)


def _store_rows(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    m: Any,
    count: int,
) -> None:
    """Row tile `m` of the block, which has `count` rows."""
    width = product.width
    block = nl.ndarray((PARTITIONS, columns), dtype=out.dtype, buffer=nl.sbuf)
    for n in nl.affine_range(columns // width):
        total = nl.zeros((PARTITIONS, width), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, product, product.deep, m, count, rows, n, width, columns)
        block[0:count, nl.ds(n * width, width)] = copy_on_scalar(total[0:count, 0:width], out.dtype)
    if columns % width:
        rest, last = columns % width, columns // width
        total = nl.zeros((PARTITIONS, rest), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, product, product.deep, m, count, rows, last, rest, columns)
        block[0:count, nl.ds(last * width, rest)] = copy_on_scalar(total[0:count, 0:rest], out.dtype)
    nl.store(out[nl.ds(top + m * PARTITIONS, count), nl.ds(left, columns)], value=block[0:count, 0:columns])


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
    for k in nl.affine_range(deep // PARTITIONS):
        at = place(k, m, tiles(deep), rows, PARTITIONS, count, product.x)
        left = place(k, n, tiles(deep), columns, product.width, width, product.w)
        total[0:count, 0:width] += nisa.nc_matmul(
            x[0:PARTITIONS, nl.ds(at, count)], w[0:PARTITIONS, nl.ds(left, width)]
        )
    if deep % PARTITIONS:
        last, rest = deep // PARTITIONS, deep % PARTITIONS
        at = place(last, m, tiles(deep), rows, PARTITIONS, count, product.x)
        left = place(last, n, tiles(deep), columns, product.width, width, product.w)
        total[0:count, 0:width] += nisa.nc_matmul(x[0:rest, nl.ds(at, count)], w[0:rest, nl.ds(left, width)])


def _keep_output(out: Tensor, x: Tensor, w: Tensor, product: Product, plan: Output, identity: Tensor | None) -> None:
    """fp32 sums of a block of the output stay in SBUF while K is streamed; one block after the other."""
    for i in nl.sequential_range(product.rows // plan.rows):
        _output_row(out, x, w, product, plan, i * plan.rows, plan.rows, identity)
    if product.rows % plan.rows:
        done = product.rows // plan.rows * plan.rows
        _output_row(out, x, w, product, plan, done, product.rows % plan.rows, identity)


def _output_row(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    plan: Output,
    top: Any,
    rows: int,
    identity: Tensor | None,
) -> None:
    step = plan.columns
    for j in nl.sequential_range(product.columns // step):
        _output_block(out, x, w, product, plan, top, rows, j * step, step, identity)
    if product.columns % step:
        done = product.columns // step * step
        _output_block(out, x, w, product, plan, top, rows, done, product.columns % step, identity)


def _output_block(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    plan: Output,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    identity: Tensor | None,
) -> None:
    """K in steps of `depth` is summed in PSUM, the steps in SBUF, both in fp32."""
    deep, depth = product.deep, plan.depth
    sums = nl.ndarray((PARTITIONS, tiles(rows) * columns), dtype=nl.float32, buffer=nl.sbuf)
    begin = min(deep, depth)
    _sum_step(sums, x, w, product, top, rows, left, columns, 0, begin, True, identity)
    for b in nl.sequential_range((deep - begin) // depth):
        tile = tiles(begin) + b * tiles(depth)
        _sum_step(sums, x, w, product, top, rows, left, columns, tile, depth, False, identity)
    if (deep - begin) % depth:
        rest = (deep - begin) % depth
        done = (deep - rest) // PARTITIONS
        _sum_step(sums, x, w, product, top, rows, left, columns, done, rest, False, identity)
    for m in nl.affine_range(rows // PARTITIONS):
        rounded = copy_on_scalar(sums[0:PARTITIONS, nl.ds(m * columns, columns)], out.dtype)
        nl.store(out[nl.ds(top + m * PARTITIONS, PARTITIONS), nl.ds(left, columns)], value=rounded)
    if rows % PARTITIONS:
        last = rows // PARTITIONS
        rounded = copy_on_scalar(sums[0 : rows % PARTITIONS, nl.ds(last * columns, columns)], out.dtype)
        nl.store(out[nl.ds(top + last * PARTITIONS, rows % PARTITIONS), nl.ds(left, columns)], value=rounded)


def _sum_step(
    sums: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    tile: Any,
    depth: int,
    first: bool,
    identity: Tensor | None,
) -> None:
    """Row tiles `tile`... of K, `depth` rows."""
    stationary = nl.ndarray((PARTITIONS, tiles(depth) * rows), dtype=w.dtype, buffer=nl.sbuf)
    moving = nl.ndarray((PARTITIONS, tiles(depth) * columns), dtype=w.dtype, buffer=nl.sbuf)
    load_block(stationary, x, product.x, tile, depth, top, rows, PARTITIONS, product, identity)
    load_block(moving, w, product.w, tile, depth, left, columns, product.width, product, identity)
    for m in nl.affine_range(rows // PARTITIONS):
        _sum_row(sums, stationary, moving, product, depth, m, PARTITIONS, rows, columns, first)
    if rows % PARTITIONS:
        last = rows // PARTITIONS
        _sum_row(sums, stationary, moving, product, depth, last, rows % PARTITIONS, rows, columns, first)


def _sum_row(
    sums: Tensor,
    x: Tensor,
    w: Tensor,
    product: Product,
    depth: int,
    m: Any,
    count: int,
    rows: int,
    columns: int,
    first: bool,
) -> None:
    """Put the product of row tile `m` into sums, or add it."""
    width = product.width
    for n in nl.affine_range(columns // width):
        total = nl.zeros((PARTITIONS, width), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, product, depth, m, count, rows, n, width, columns)
        add_to_sums(sums, total, m * columns + n * width, count, width, first)
    if columns % width:
        rest, last = columns % width, columns // width
        total = nl.zeros((PARTITIONS, rest), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, product, depth, m, count, rows, last, rest, columns)
        add_to_sums(sums, total, m * columns + last * width, count, rest, first)
