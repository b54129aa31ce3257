"""What the fused kernels are compared with, in the same dialect and under the same 176 KiB per partition.

Dense Y = X·W is `matmul(x_t, w)`. Unfused X·U·V is two calls with the intermediate in HBM: `matmul(matmul(u, x_t), v)`,
where the first call gives (X·U)ᵀ = Uᵀ·Xᵀ at once, so that nothing has to be transposed between the two. X is taken
transposed, [inputs, S], and its transposition is not charged to the baselines: both choices favour them.
Between the matmuls of an unfused MLP stand `swiglu` and, for interpolative factors, `add`: one pass over HBM each.
"""

from functools import lru_cache
from typing import Any

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import jit, nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.stages.gemm import add_products, load_part, multiply
from nxdi_svd_plugin.kernels.tiling.dense import PASS_COLUMNS, Operand, Product, choose_dense
from nxdi_svd_plugin.kernels.tiling.loops import Loops, loops


def matmul_kernel(x_t: Any, w: Any) -> Any:
    """X·W [M, N] from x_t [K, M] and w [K, N], both plain.

    Either one operand stays in SBUF in blocks, the other is streamed past each block once, and every sum over K stays
    in PSUM; or fp32 sums of a block of the output stay in SBUF while K is streamed. kernels/tiling/dense.py picks which
    and how large, by HBM traffic.
    """
    plan = _planned(tuple(x_t.shape), tuple(w.shape), str(x_t.dtype), str(w.dtype))
    out = nl.ndarray((plan.product.rows, plan.product.columns), dtype=x_t.dtype, buffer=nl.shared_hbm)
    multiply(out, x_t, w, plan, None)
    return out


matmul = jit(matmul_kernel)


@lru_cache(maxsize=4096)
def _planned(x_t: tuple[int, ...], w: tuple[int, ...], dtype: str, other: str) -> Loops:
    """Cached, and of plain values: the front end calls it as it is (kernels/checks.py)."""
    if x_t[0] != w[0] or dtype != other:
        raise KernelError(f"matmul: x_t {x_t} {dtype} and w {w} {other} must share K and dtype")
    plan = choose_dense(x_t[1], x_t[0], w[1], 4 if dtype == "float32" else 2)
    return loops(Product(x_t[1], x_t[0], w[1], plan))


def swiglu_kernel(gate: Any, up: Any) -> Any:
    """silu(gate) * up of two tensors of one shape, [I, S] as [I, S]; fp32 inside, rounded once."""
    _same(tuple(gate.shape), tuple(up.shape), str(gate.dtype), str(up.dtype))
    out = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    bias = nl.zeros((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    for m in nl.affine_range(gate.shape[0] // PARTITIONS):
        _pass_row(out, gate, up, m, PARTITIONS, bias)
    if gate.shape[0] % PARTITIONS:
        _pass_row(out, gate, up, gate.shape[0] // PARTITIONS, gate.shape[0] % PARTITIONS, bias)
    return out


swiglu = jit(swiglu_kernel)


def add_kernel(a: Any, b: Any) -> Any:
    """a + b of two tensors of one shape: what an unfused interpolative `down` adds its pivots with."""
    _same(tuple(a.shape), tuple(b.shape), str(a.dtype), str(b.dtype))
    out = nl.ndarray(a.shape, dtype=a.dtype, buffer=nl.shared_hbm)
    for m in nl.affine_range(a.shape[0] // PARTITIONS):
        _pass_row(out, a, b, m, PARTITIONS, None)
    if a.shape[0] % PARTITIONS:
        _pass_row(out, a, b, a.shape[0] // PARTITIONS, a.shape[0] % PARTITIONS, None)
    return out


add = jit(add_kernel)


@lru_cache(maxsize=4096)
def _same(a: tuple[int, ...], b: tuple[int, ...], dtype: str, other: str) -> None:
    if a != b or dtype != other:
        raise KernelError(f"a {a} {dtype} and b {b} {other} must have one shape and dtype")


def _pass_row(out: Any, a: Any, b: Any, m: Any, rows: int, bias: Any) -> None:
    """Row tile `m` of an elementwise pass; every element is read and written once."""
    for n in nl.affine_range(a.shape[1] // PASS_COLUMNS):
        _pass_tile(out, a, b, m * PARTITIONS, rows, n * PASS_COLUMNS, PASS_COLUMNS, bias)
    if a.shape[1] % PASS_COLUMNS:
        _pass_tile(
            out, a, b, m * PARTITIONS, rows, a.shape[1] // PASS_COLUMNS * PASS_COLUMNS, a.shape[1] % PASS_COLUMNS, bias
        )


def _pass_tile(out: Any, a: Any, b: Any, top: Any, rows: int, left: Any, columns: int, bias: Any) -> None:
    """silu(a) * b where there is a (zero) bias for SiLU, else a + b."""
    first = nl.load(a[nl.ds(top, rows), nl.ds(left, columns)])
    second = nl.load(b[nl.ds(top, rows), nl.ds(left, columns)])
    if bias is None:
        made = nisa.tensor_tensor(first, second, op=nl.add, dtype=a.dtype)
        nl.store(out[nl.ds(top, rows), nl.ds(left, columns)], value=made)
    else:
        gated = nisa.activation(op=nl.silu, data=first, bias=bias[0:rows, 0:1], dtype=nl.float32)
        product = nisa.tensor_tensor(gated, second, op=nl.multiply, dtype=a.dtype)
        nl.store(out[nl.ds(top, rows), nl.ds(left, columns)], value=product)


def naive_fusion_kernel(x_t: Any, u: Any, v: Any, rows: int = 128, columns: int = 512, ranks: int = 512) -> Any:
    """The paper's Algorithm 1, for measurement only: (X·U) is recomputed for every block of output columns.

    x_t [H, S], u [H, R], v [R, N], plain, with sizes that the blocks divide; output [S, N].
    """
    deep, total_rows, rank = x_t.shape[0], x_t.shape[1], u.shape[1]
    if total_rows % rows or v.shape[1] % columns or rank % ranks or deep % PARTITIONS:
        raise KernelError(f"naive fusion: {x_t.shape}, {u.shape}, {v.shape} are no multiples of its blocks")
    out = nl.ndarray((total_rows, v.shape[1]), dtype=x_t.dtype, buffer=nl.shared_hbm)
    plain = Product(rank, deep, total_rows, Operand(True, ranks, rows))
    for m in nl.affine_range(total_rows // rows):
        for n in nl.affine_range(v.shape[1] // columns):
            total = nl.zeros((rows, columns), dtype=nl.float32, buffer=nl.psum)
            for b in nl.affine_range(rank // ranks):
                x_block = nl.ndarray((PARTITIONS, tiles(deep) * rows), dtype=x_t.dtype, buffer=nl.sbuf)
                u_block = nl.ndarray((PARTITIONS, tiles(deep) * ranks), dtype=x_t.dtype, buffer=nl.sbuf)
                v_block = nl.ndarray((PARTITIONS, tiles(ranks) * columns), dtype=x_t.dtype, buffer=nl.sbuf)
                load_part(x_block, x_t, 0, deep, m * rows, rows)
                load_part(u_block, u, 0, deep, b * ranks, ranks)
                load_part(v_block, v, b * ranks, ranks, n * columns, columns)
                for k in nl.affine_range(ranks // PARTITIONS):
                    part = nl.zeros((PARTITIONS, rows), dtype=nl.float32, buffer=nl.psum)
                    add_products(part, u_block, x_block, plain, deep, k, PARTITIONS, ranks, 0, rows, rows)
                    t = nisa.tensor_copy(part, dtype=x_t.dtype, engine=nisa.vector_engine)
                    total[0:rows, 0:columns] += nisa.nc_matmul(t, v_block[0:PARTITIONS, nl.ds(k * columns, columns)])
            nl.store(out[nl.ds(m * rows, rows), nl.ds(n * columns, columns)], value=copy_on_scalar(total, out.dtype))
    return out


naive_fusion = jit(naive_fusion_kernel)


def result_strip_matmul_kernel(x_t: Any, w: Any, rows: int = 2048, columns: int = 1024, deep: int = 1024) -> Any:
    """Dense X·W in the manner of AWS's matmul tutorial, for measurement only.

    K is blocked too, and the partial sums of all M rows by `columns` stay in SBUF in the input's dtype. That strip
    outgrows SBUF, and spills, above M of about 8192.
    """
    depth, total_rows, total_columns = x_t.shape[0], x_t.shape[1], w.shape[1]
    rows, columns, deep = min(rows, total_rows), min(columns, total_columns), min(deep, depth)
    if total_rows % rows or total_columns % columns or depth % deep or columns % MOVING or rows % PARTITIONS:
        raise KernelError(f"result-strip matmul: {x_t.shape} and {w.shape} are no multiples of its blocks")
    out = nl.ndarray((total_rows, total_columns), dtype=x_t.dtype, buffer=nl.shared_hbm)
    plain = Product(total_rows, depth, total_columns, Operand(True, rows, columns))
    for n in nl.affine_range(total_columns // columns):
        sums = nl.zeros((PARTITIONS, total_rows // PARTITIONS, columns), dtype=x_t.dtype, buffer=nl.sbuf)
        for k in nl.sequential_range(depth // deep):
            w_block = nl.ndarray((PARTITIONS, tiles(deep) * columns), dtype=w.dtype, buffer=nl.sbuf)
            load_part(w_block, w, k * deep, deep, n * columns, columns)
            for m in nl.affine_range(total_rows // rows):
                x_block = nl.ndarray((PARTITIONS, tiles(deep) * rows), dtype=x_t.dtype, buffer=nl.sbuf)
                load_part(x_block, x_t, k * deep, deep, m * rows, rows)
                for i in nl.affine_range(rows // PARTITIONS):
                    for j in nl.affine_range(columns // MOVING):
                        total = nl.zeros((PARTITIONS, MOVING), dtype=nl.float32, buffer=nl.psum)
                        add_products(total, x_block, w_block, plain, deep, i, PARTITIONS, rows, j, MOVING, columns)
                        sums[0:PARTITIONS, m * (rows // PARTITIONS) + i, nl.ds(j * MOVING, MOVING)] += total
        for m in nl.affine_range(total_rows // PARTITIONS):
            nl.store(
                out[nl.ds(m * PARTITIONS, PARTITIONS), nl.ds(n * columns, columns)],
                value=sums[0:PARTITIONS, m, 0:columns],
            )
    return out


result_strip_matmul = jit(result_strip_matmul_kernel)
