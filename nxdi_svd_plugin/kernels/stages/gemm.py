"""Plain matmuls: X·W [M, N] of x_t [K, M] and w [K, N] in HBM, blocked by a plan of kernels/tiling/dense.py.

In SBUF a block of an operand is [128, K/128·columns], one of the output [128, rows/128·columns], tiles side by side.
"""

from typing import Any

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.tiling.dense import SUM_DEPTH, Operand, Output

Tensor = Any


def keep_operand(out: Tensor, x_t: Tensor, w: Tensor, plan: Operand) -> None:
    """Blocks of one operand stay in SBUF, the other is streamed past each; every sum over K stays in PSUM."""
    kept = x_t.shape[1] if plan.keeps_x else w.shape[1]
    for i in nl.affine_range(kept // plan.block):
        _kept_block(out, x_t, w, plan, i * plan.block, plan.block)
    if kept % plan.block:
        _kept_block(out, x_t, w, plan, kept // plan.block * plan.block, kept % plan.block)


def _kept_block(out: Tensor, x_t: Tensor, w: Tensor, plan: Operand, at: Any, size: int) -> None:
    """Rows (or columns) `at`... of the output."""
    deep = x_t.shape[0]
    block = nl.ndarray((PARTITIONS, tiles(deep) * size), dtype=w.dtype, buffer=nl.sbuf)
    if plan.keeps_x:
        load_part(block, x_t, 0, deep, at, size)
        for c in nl.affine_range(w.shape[1] // plan.stream):
            _stream_w(out, block, w, deep, at, size, c * plan.stream, plan.stream)
        if w.shape[1] % plan.stream:
            done = w.shape[1] // plan.stream * plan.stream
            _stream_w(out, block, w, deep, at, size, done, w.shape[1] % plan.stream)
    else:
        load_part(block, w, 0, deep, at, size)
        for c in nl.affine_range(x_t.shape[1] // plan.stream):
            _stream_x(out, x_t, block, deep, at, size, c * plan.stream, plan.stream)
        if x_t.shape[1] % plan.stream:
            done = x_t.shape[1] // plan.stream * plan.stream
            _stream_x(out, x_t, block, deep, at, size, done, x_t.shape[1] % plan.stream)


def _stream_w(out: Tensor, x: Tensor, w: Tensor, deep: int, top: Any, rows: int, left: Any, columns: int) -> None:
    moving = nl.ndarray((PARTITIONS, tiles(deep) * columns), dtype=w.dtype, buffer=nl.sbuf)
    load_part(moving, w, 0, deep, left, columns)
    _store_product(out, x, moving, deep, top, rows, left, columns)


def _stream_x(out: Tensor, x_t: Tensor, w: Tensor, deep: int, left: Any, columns: int, top: Any, rows: int) -> None:
    moving = nl.ndarray((PARTITIONS, tiles(deep) * rows), dtype=w.dtype, buffer=nl.sbuf)
    load_part(moving, x_t, 0, deep, top, rows)
    _store_product(out, moving, w, deep, top, rows, left, columns)


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


def _store_product(out: Tensor, x: Tensor, w: Tensor, deep: int, top: Any, rows: int, left: Any, columns: int) -> None:
    """Store the product of the SBUF blocks x and w at out[top, left], 128 rows at a time."""
    for m in nl.affine_range(rows // PARTITIONS):
        _store_rows(out, x, w, deep, top, rows, left, columns, m, PARTITIONS)
    if rows % PARTITIONS:
        _store_rows(out, x, w, deep, top, rows, left, columns, rows // PARTITIONS, rows % PARTITIONS)


def _store_rows(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    deep: int,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    m: Any,
    count: int,
) -> None:
    block = nl.ndarray((PARTITIONS, columns), dtype=out.dtype, buffer=nl.sbuf)
    for n in nl.affine_range(columns // MOVING):
        total = nl.zeros((PARTITIONS, MOVING), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, deep, m * PARTITIONS, count, rows, n * MOVING, MOVING, columns)
        block[0:count, nl.ds(n * MOVING, MOVING)] = copy_on_scalar(total[0:count, 0:MOVING], out.dtype)
    if columns % MOVING:
        width, done = columns % MOVING, columns // MOVING * MOVING
        total = nl.zeros((PARTITIONS, width), dtype=nl.float32, buffer=nl.psum)
        add_products(total, x, w, deep, m * PARTITIONS, count, rows, done, width, columns)
        block[0:count, nl.ds(done, width)] = copy_on_scalar(total[0:count, 0:width], out.dtype)
    nl.store(out[nl.ds(top + m * PARTITIONS, count), nl.ds(left, columns)], value=block[0:count, 0:columns])


def add_products(
    total: Tensor,
    stationary: Tensor,
    moving: Tensor,
    deep: int,
    at: Any,
    count: int,
    rows: int,
    left: Any,
    width: int,
    columns: int,
) -> None:
    """Sum over K into the PSUM tile `total` the product of `count` of the `rows` stationary columns, from `at`, and of
    `width` of the `columns` moving ones, from `left`."""
    for k in nl.affine_range(deep // PARTITIONS):
        total[0:count, 0:width] += nisa.nc_matmul(
            stationary[0:PARTITIONS, nl.ds(k * rows + at, count)],
            moving[0:PARTITIONS, nl.ds(k * columns + left, width)],
        )
    if deep % PARTITIONS:
        last = deep // PARTITIONS
        total[0:count, 0:width] += nisa.nc_matmul(
            stationary[0 : deep % PARTITIONS, nl.ds(last * rows + at, count)],
            moving[0 : deep % PARTITIONS, nl.ds(last * columns + left, width)],
        )


def keep_output(out: Tensor, x_t: Tensor, w: Tensor, plan: Output) -> None:
    """fp32 sums of a block of the output stay in SBUF while K is streamed; one block after the other."""
    for i in nl.sequential_range(out.shape[0] // plan.rows):
        _output_row(out, x_t, w, plan, i * plan.rows, plan.rows)
    if out.shape[0] % plan.rows:
        done = out.shape[0] // plan.rows * plan.rows
        _output_row(out, x_t, w, plan, done, out.shape[0] % plan.rows)


def _output_row(out: Tensor, x_t: Tensor, w: Tensor, plan: Output, top: Any, rows: int) -> None:
    for j in nl.sequential_range(out.shape[1] // plan.columns):
        _output_block(out, x_t, w, top, rows, j * plan.columns, plan.columns)
    if out.shape[1] % plan.columns:
        done = out.shape[1] // plan.columns * plan.columns
        _output_block(out, x_t, w, top, rows, done, out.shape[1] % plan.columns)


def _output_block(out: Tensor, x_t: Tensor, w: Tensor, top: Any, rows: int, left: Any, columns: int) -> None:
    """K in steps of SUM_DEPTH is summed in PSUM, the steps in SBUF, both in fp32."""
    deep = x_t.shape[0]
    sums = nl.ndarray((PARTITIONS, tiles(rows) * columns), dtype=nl.float32, buffer=nl.sbuf)
    begin = min(deep, SUM_DEPTH)
    _sum_step(sums, x_t, w, top, rows, left, columns, 0, begin, True)
    for b in nl.sequential_range((deep - begin) // SUM_DEPTH):
        _sum_step(sums, x_t, w, top, rows, left, columns, begin + b * SUM_DEPTH, SUM_DEPTH, False)
    if (deep - begin) % SUM_DEPTH:
        done = deep - (deep - begin) % SUM_DEPTH
        _sum_step(sums, x_t, w, top, rows, left, columns, done, deep - done, False)
    for m in nl.affine_range(rows // PARTITIONS):
        rounded = copy_on_scalar(sums[0:PARTITIONS, nl.ds(m * columns, columns)], out.dtype)
        nl.store(out[nl.ds(top + m * PARTITIONS, PARTITIONS), nl.ds(left, columns)], value=rounded)
    if rows % PARTITIONS:
        last = rows // PARTITIONS
        rounded = copy_on_scalar(sums[0 : rows % PARTITIONS, nl.ds(last * columns, columns)], out.dtype)
        nl.store(out[nl.ds(top + last * PARTITIONS, rows % PARTITIONS), nl.ds(left, columns)], value=rounded)


def _sum_step(
    sums: Tensor,
    x_t: Tensor,
    w: Tensor,
    top: Any,
    rows: int,
    left: Any,
    columns: int,
    start: Any,
    depth: int,
    first: bool,
) -> None:
    """Rows start... of K, `depth` of them."""
    x = nl.ndarray((PARTITIONS, tiles(depth) * rows), dtype=x_t.dtype, buffer=nl.sbuf)
    moving = nl.ndarray((PARTITIONS, tiles(depth) * columns), dtype=w.dtype, buffer=nl.sbuf)
    load_part(x, x_t, start, depth, top, rows)
    load_part(moving, w, start, depth, left, columns)
    for m in nl.affine_range(rows // PARTITIONS):
        _sum_row(sums, x, moving, depth, m, PARTITIONS, rows, columns, first)
    if rows % PARTITIONS:
        _sum_row(sums, x, moving, depth, rows // PARTITIONS, rows % PARTITIONS, rows, columns, first)


def _sum_row(
    sums: Tensor, x: Tensor, w: Tensor, depth: int, m: Any, count: int, rows: int, columns: int, first: bool
) -> None:
    for n in nl.affine_range(columns // MOVING):
        _sum_tile(sums, x, w, depth, m, count, rows, columns, n * MOVING, MOVING, first)
    if columns % MOVING:
        done = columns // MOVING * MOVING
        _sum_tile(sums, x, w, depth, m, count, rows, columns, done, columns % MOVING, first)


def _sum_tile(
    sums: Tensor,
    x: Tensor,
    w: Tensor,
    depth: int,
    m: Any,
    count: int,
    rows: int,
    columns: int,
    at: Any,
    width: int,
    first: bool,
) -> None:
    """Put the product of row tile `m` and columns at... into sums, or add it."""
    total = nl.zeros((PARTITIONS, width), dtype=nl.float32, buffer=nl.psum)
    add_products(total, x, w, depth, m * PARTITIONS, count, rows, at, width, columns)
    add_to_sums(sums, total, m * columns + at, count, width, first)


def add_to_sums(sums: Tensor, total: Tensor, at: Any, count: int, width: int, first: bool) -> None:
    """sums[:, at...] = total where it is the `first`, else += total: fp32 in SBUF, the product in PSUM."""
    if first:
        sums[0:count, nl.ds(at, width)] = copy_on_scalar(total[0:count, 0:width], nl.float32)
    else:
        sums[0:count, nl.ds(at, width)] = nisa.tensor_tensor(
            total[0:count, 0:width], sums[0:count, nl.ds(at, width)], op=nl.add, dtype=nl.float32
        )
