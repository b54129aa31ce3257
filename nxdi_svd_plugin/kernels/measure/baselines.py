"""What the fused kernels are compared with, in the same dialect and under the same 176 KiB per partition.

Dense Y = X·W is `matmul(x_t, w)`. Unfused X·U·V is two calls with the intermediate in HBM: `matmul(matmul(u, x_t), v)`,
where the first call gives (X·U)ᵀ = Uᵀ·Xᵀ at once, so that nothing has to be transposed between the two. X is taken
transposed, [inputs, S], and its transposition is not charged to the baselines: both choices favour them.
Between the matmuls of an unfused MLP stand `swiglu` and, for interpolative factors, `add`: one pass over HBM each.
"""

from collections.abc import Callable
from typing import Any

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import jit, nisa, nl
from nxdi_svd_plugin.kernels.stages import copy_on_scalar, for_tiles
from nxdi_svd_plugin.kernels.tiling.dense import SUM_DEPTH, Operand, Output, choose_dense

_PASS = 2048
"""Columns of one tile of an elementwise pass."""


def matmul_kernel(x_t: Any, w: Any) -> Any:
    """X·W [M, N] from x_t [K, M] and w [K, N], both plain.

    Either one operand stays in SBUF in blocks, the other is streamed past each block once, and every sum over K stays
    in PSUM; or fp32 sums of a block of the output stay in SBUF while K is streamed. kernels/tiling/dense.py picks which
    and how large, by HBM traffic.
    """
    deep, rows, columns = _shape(x_t, w)
    plan = choose_dense(rows, deep, columns, 4 if x_t.dtype == nl.float32 else 2)
    out = nl.ndarray((rows, columns), dtype=x_t.dtype, buffer=nl.shared_hbm)
    if isinstance(plan, Output):
        _keep_output(out, x_t, w, plan)
    else:
        _keep_operand(out, x_t, w, plan)
    return out


matmul = jit(matmul_kernel)


def _shape(x_t: Any, w: Any) -> tuple[int, int, int]:
    if x_t.shape[0] != w.shape[0] or x_t.dtype != w.dtype:
        raise KernelError(f"matmul: x_t {x_t.shape} {x_t.dtype} and w {w.shape} {w.dtype} must share K and dtype")
    return x_t.shape[0], x_t.shape[1], w.shape[1]


def _keep_operand(out: Any, x_t: Any, w: Any, plan: Operand) -> None:
    resident, streamed = (x_t, w) if plan.keeps_x else (w, x_t)
    deep = x_t.shape[0]

    def block(b: Any, size: int) -> None:
        kept = _load_part(resident, 0, deep, b * plan.block, size)

        def tile(c: Any, width: int) -> None:
            moving = _load_part(streamed, 0, deep, c * plan.stream, width)
            if plan.keeps_x:
                _output_rows(out, kept, moving, deep, (b * plan.block, c * plan.stream), (size, width))
            else:
                _output_rows(out, moving, kept, deep, (c * plan.stream, b * plan.block), (width, size))

        for_tiles(streamed.shape[1], plan.stream, tile)

    for_tiles(resident.shape[1], plan.block, block)


def _keep_output(out: Any, x_t: Any, w: Any, plan: Output) -> None:
    def row(top: Any, rows: int) -> None:
        _in_turn(
            out.shape[1], plan.columns, lambda left, columns: _output_block(out, x_t, w, (top, left), (rows, columns))
        )

    _in_turn(out.shape[0], plan.rows, row)


def _in_turn(total: int, step: int, body: Callable[[Any, int], None]) -> None:
    """body(start, size) for every `step` of `total` in order, one after the other."""
    if total // step:
        for i in nl.sequential_range(total // step):
            body(i * step, step)
    if total % step:
        body(total - total % step, total % step)


def _output_block(out: Any, x_t: Any, w: Any, at: tuple[Any, Any], size: tuple[int, int]) -> None:
    """A block of X·W from at[0], at[1]: K in steps of SUM_DEPTH is summed in PSUM, the steps in SBUF, both in fp32."""
    deep = x_t.shape[0]
    sums = nl.ndarray((PARTITIONS, tiles(size[0]), size[1]), dtype=nl.float32, buffer=nl.sbuf)

    def step(top: Any, depth: int, first: bool = False) -> None:
        x = _load_part(x_t, top, depth, at[0], size[0])
        _add_product(sums, x, _load_part(w, top, depth, at[1], size[1]), depth, size, first)

    begin = min(deep, SUM_DEPTH)
    step(0, begin, first=True)
    _in_turn(deep - begin, SUM_DEPTH, lambda top, depth: step(begin + top, depth))

    def row(m: Any, count: int) -> None:
        rounded = copy_on_scalar(sums[0:count, m, 0 : size[1]], out.dtype)
        nl.store(out[nl.ds(at[0] + m * PARTITIONS, count), nl.ds(at[1], size[1])], value=rounded)

    for_tiles(size[0], PARTITIONS, row)


def _add_product(sums: Any, x: Any, w: Any, deep: int, size: tuple[int, int], first: bool) -> None:
    """Put the product of the SBUF blocks x [128, K/128, rows] and w [128, K/128, columns] into sums, or add it."""

    def row(m: Any, count: int) -> None:
        def piece(n: Any, width: int) -> None:
            total = _sum(x, w, deep, (m * PARTITIONS, n * MOVING), (count, width))
            at = slice(0, count), m, nl.ds(n * MOVING, width)
            sums[at] = (
                copy_on_scalar(total, nl.float32)
                if first
                else nisa.tensor_tensor(total, sums[at], op=nl.add, dtype=nl.float32)
            )

        for_tiles(size[1], MOVING, piece)

    for_tiles(size[0], PARTITIONS, row)


def _load_part(source: Any, top: Any, deep: int, first: Any, size: int) -> Any:
    """Rows top..top+deep and `size` columns of source [K, n] as [128, deep/128, size]."""
    block = nl.ndarray((PARTITIONS, tiles(deep), size), dtype=source.dtype, buffer=nl.sbuf)

    def row(k: Any, rows: int) -> None:
        block[0:rows, k, 0:size] = nl.load(source[nl.ds(top + k * PARTITIONS, rows), nl.ds(first, size)])

    for_tiles(deep, PARTITIONS, row)
    return block


def _sum(stationary: Any, moving: Any, deep: int, at: tuple[Any, Any], size: tuple[int, int]) -> Any:
    """The output tile of stationary columns at[0].. and moving columns at[1].., summed over K in PSUM."""
    total = nl.zeros((PARTITIONS, size[1]), dtype=nl.float32, buffer=nl.psum)

    def add(k: Any, rows: int) -> None:
        total[0 : size[0], 0 : size[1]] += nisa.nc_matmul(
            stationary[0:rows, k, nl.ds(at[0], size[0])], moving[0:rows, k, nl.ds(at[1], size[1])]
        )

    for_tiles(deep, PARTITIONS, add)
    return total[0 : size[0], 0 : size[1]]


def _output_rows(out: Any, x: Any, w: Any, deep: int, at: tuple[Any, Any], size: tuple[int, int]) -> None:
    """Store the product of the SBUF blocks x [128, K/128, rows] and w [128, K/128, columns], 128 rows at a time."""

    def row(m: Any, count: int) -> None:
        block = nl.ndarray((PARTITIONS, size[1]), dtype=out.dtype, buffer=nl.sbuf)

        def piece(n: Any, width: int) -> None:
            total = _sum(x, w, deep, (m * PARTITIONS, n * MOVING), (count, width))
            block[0:count, nl.ds(n * MOVING, width)] = copy_on_scalar(total, out.dtype)

        for_tiles(size[1], MOVING, piece)
        nl.store(out[nl.ds(at[0] + m * PARTITIONS, count), nl.ds(at[1], size[1])], value=block[0:count, 0 : size[1]])

    for_tiles(size[0], PARTITIONS, row)


def swiglu_kernel(gate: Any, up: Any) -> Any:
    """silu(gate) * up of two tensors of one shape, [I, S] as [I, S]; fp32 inside, rounded once."""
    out = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    bias = nl.zeros((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)

    def combine(gate: Any, up: Any) -> Any:
        gated = nisa.activation(op=nl.silu, data=gate, bias=bias[0 : gate.shape[0], 0:1], dtype=nl.float32)
        return nisa.tensor_tensor(gated, up, op=nl.multiply, dtype=up.dtype)

    _elementwise(out, gate, up, combine)
    return out


swiglu = jit(swiglu_kernel)


def add_kernel(a: Any, b: Any) -> Any:
    """a + b of two tensors of one shape: what an unfused interpolative `down` adds its pivots with."""
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    _elementwise(out, a, b, lambda x, y: nisa.tensor_tensor(x, y, op=nl.add, dtype=x.dtype))
    return out


add = jit(add_kernel)


def _elementwise(out: Any, a: Any, b: Any, combine: Callable[[Any, Any], Any]) -> None:
    """Store combine(a, b), tile by tile; every element is read and written once."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise KernelError(f"a {a.shape} {a.dtype} and b {b.shape} {b.dtype} must have one shape and dtype")

    def row(m: Any, rows: int) -> None:
        def piece(n: Any, columns: int) -> None:
            at = nl.ds(m * PARTITIONS, rows), nl.ds(n * _PASS, columns)
            nl.store(out[at], value=combine(nl.load(a[at]), nl.load(b[at])))

        for_tiles(a.shape[1], _PASS, piece)

    for_tiles(a.shape[0], PARTITIONS, row)


def naive_fusion_kernel(x_t: Any, u: Any, v: Any, rows: int = 128, columns: int = 512, ranks: int = 512) -> Any:
    """The paper's Algorithm 1, for measurement only: (X·U) is recomputed for every block of output columns.

    x_t [H, S], u [H, R], v [R, N], plain, with sizes that the blocks divide; output [S, N].
    """
    deep, total_rows, rank = x_t.shape[0], x_t.shape[1], u.shape[1]
    if total_rows % rows or v.shape[1] % columns or rank % ranks or deep % PARTITIONS:
        raise KernelError(f"naive fusion: {x_t.shape}, {u.shape}, {v.shape} are no multiples of its blocks")
    out = nl.ndarray((total_rows, v.shape[1]), dtype=x_t.dtype, buffer=nl.shared_hbm)
    for m in nl.affine_range(total_rows // rows):
        for n in nl.affine_range(v.shape[1] // columns):
            total = nl.zeros((rows, columns), dtype=nl.float32, buffer=nl.psum)
            for b in nl.affine_range(rank // ranks):
                x_block = _load_part(x_t, 0, deep, m * rows, rows)
                u_block = _load_part(u, 0, deep, b * ranks, ranks)
                v_block = _load_part(v, b * ranks, ranks, n * columns, columns)
                for k in nl.affine_range(ranks // PARTITIONS):
                    part = _sum(u_block, x_block, deep, (k * PARTITIONS, 0), (PARTITIONS, rows))
                    t = nisa.tensor_copy(part, dtype=x_t.dtype, engine=nisa.vector_engine)
                    total[0:rows, 0:columns] += nisa.nc_matmul(t, v_block[0:PARTITIONS, k, 0:columns])
            nl.store(out[nl.ds(m * rows, rows), nl.ds(n * columns, columns)], value=copy_on_scalar(total, out.dtype))
    return out


naive_fusion = jit(naive_fusion_kernel)


def result_strip_matmul_kernel(x_t: Any, w: Any, rows: int = 2048, columns: int = 1024, deep: int = 1024) -> Any:
    """Dense X·W in the manner of AWS's matmul tutorial, for measurement only.

    K is blocked too, and the partial sums of all M rows by `columns` stay in SBUF in the input's dtype. That strip
    outgrows SBUF, and spills, above M of about 8192.
    """
    depth, total_rows, total_columns = _shape(x_t, w)
    rows, columns, deep = min(rows, total_rows), min(columns, total_columns), min(deep, depth)
    if total_rows % rows or total_columns % columns or depth % deep or columns % MOVING or rows % PARTITIONS:
        raise KernelError(f"result-strip matmul: {x_t.shape} and {w.shape} are no multiples of its blocks")
    out = nl.ndarray((total_rows, total_columns), dtype=x_t.dtype, buffer=nl.shared_hbm)
    for n in nl.affine_range(total_columns // columns):
        sums = nl.zeros((PARTITIONS, total_rows // PARTITIONS, columns), dtype=x_t.dtype, buffer=nl.sbuf)
        for k in nl.sequential_range(depth // deep):
            w_block = _load_part(w, k * deep, deep, n * columns, columns)
            for m in nl.affine_range(total_rows // rows):
                x_block = _load_part(x_t, k * deep, deep, m * rows, rows)
                for i in nl.affine_range(rows // PARTITIONS):
                    for j in nl.affine_range(columns // MOVING):
                        total = _sum(x_block, w_block, deep, (i * PARTITIONS, j * MOVING), (PARTITIONS, MOVING))
                        sums[0:PARTITIONS, m * (rows // PARTITIONS) + i, nl.ds(j * MOVING, MOVING)] += total
        for m in nl.affine_range(total_rows // PARTITIONS):
            nl.store(
                out[nl.ds(m * PARTITIONS, PARTITIONS), nl.ds(n * columns, columns)],
                value=sums[0:PARTITIONS, m, 0:columns],
            )
    return out


result_strip_matmul = jit(result_strip_matmul_kernel)
