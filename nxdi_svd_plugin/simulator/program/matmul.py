"""Tensor engine instructions: `nc_matmul` and `nc_transpose` (also the Vector Engine's 32 x 32 transpose)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, STATIONARY, VECTOR_TRANSPOSE
from nxdi_svd_plugin.simulator.place import fail, kernel_place
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.affine import as_expr
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype, float32, is_float
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import Reads, View
from nxdi_svd_plugin.simulator.program.tracer import tracer


def _product(a: Array, b: Array) -> Array:
    return np.asarray(a.reshape(len(a), -1).T @ b.reshape(len(b), -1))


def _checked(compute: Callable[..., Array], claims: dict[str, bool], api: str) -> Callable[..., Array]:
    """The product, after a check that operands said to be 0 or 1 are: the engine takes fewer passes over them."""
    place = kernel_place()

    def checked(*operands: Array) -> Array:
        for (name, claimed), values in zip(claims.items(), operands, strict=True):
            if claimed and not ((values == 0) | (values == 1)).all():
                fail(
                    f"{api}: is_{name}_onezero=True, but {name} holds {values[(values != 0) & (values != 1)][0]}", place
                )
        return compute(*operands)

    return checked


def nc_matmul(
    stationary: Any,
    moving: Any,
    *,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    tile_position: tuple[Any, ...] = (),
    tile_size: tuple[int, ...] = (),
    mask: Any = None,
    perf_mode: str = "",
) -> View:
    """`stationary.T @ moving`: [K, M] and [K, N] in SBUF give [M, N], fp32 in PSUM.

    K <= 128 (partitions), M <= 128, N <= 512. Cost: max(min(64, M), N) cycles, times 4 for fp32 (2 if an operand is
    0/1 only). `mask` bounds the result.
    """
    api = "nki.isa.nc_matmul"
    pair = [elementwise.in_sbuf(v, api, n) for n, v in (("stationary", stationary), ("moving", moving))]
    rows = _double_rows(pair, perf_mode, api)
    sizes = [prod(v.shape[1 + (rows > 1) :]) for v in pair]
    _check_operands(pair, sizes, api)
    _check_pe_tile(tile_position, tile_size, pair[0].shape[0], sizes[0], api)
    info: dict[str, Any] = {
        "product": True,
        "transpose": is_transpose,
        "rows": rows,
        "onezero": is_stationary_onezero or is_moving_onezero,
    }
    space = (pair[0].shape[0], sizes[0], sizes[1])
    compute = _double_product if rows > 1 else _product
    if info["onezero"]:
        compute = _checked(compute, {"stationary": is_stationary_onezero, "moving": is_moving_onezero}, api)
    return emit.result(
        "nc_matmul",
        "pe",
        space,
        _operand_axes(pair, rows),
        (1, 2),
        compute,
        float32,
        "psum",
        mask=mask,
        mask_axes=(1, 2),
        **info,
    )


def _check_operands(pair: list[View], sizes: list[int], api: str) -> None:
    if pair[0].shape[0] != pair[1].shape[0]:
        fail(
            f"{api}: contraction sizes differ: stationary has {pair[0].shape[0]} partitions, moving {pair[1].shape[0]}"
        )
    for view, size, limit, name in zip(pair, sizes, (STATIONARY, MOVING), ("stationary", "moving"), strict=True):
        if size > limit:
            fail(f"{api}: {name} has {size} elements per partition, at most {limit}")
        if not is_float(view.dtype):
            fail(f"{api}: {name} is {view.dtype}; the Tensor Engine takes floating types")
    if [v.dtype for v in pair].count(float32) == 1:
        fail(f"{api}: fp32 pairs only with fp32, found {pair[0].dtype} and {pair[1].dtype}")


def _operand_axes(pair: list[View], rows: int) -> Reads:
    """Instruction axes (K, M, N) of the operands; those of free axes that one instruction axis walks are unknown."""
    if rows > 1:
        return [(pair[0], (0, None, 1)), (pair[1], (0, None, 2))]
    return [(v, (0, i + 1) if v.ndim == 2 else (0, *[None] * (v.ndim - 1))) for i, v in enumerate(pair)]


def _double_rows(pair: list[View], perf_mode: str, api: str) -> int:
    if not perf_mode:
        return 1
    if tracer().target == "trn1" or perf_mode != "double_row_gen3":
        fail(f"{api}: perf_mode={perf_mode!r} does not exist on NeuronCore-v2 (Trn1)")
    if any(v.ndim != 3 or v.shape[1] != 2 or v.itemsize != 1 for v in pair):
        fail(f"{api}: double_row_gen3 takes fp8 operands of [K, 2, N]")
    return 2


def _double_product(a: Array, b: Array) -> Array:
    return np.asarray(np.einsum("ktm,ktn->mn", a, b))


def _check_pe_tile(position: tuple[Any, ...], size: tuple[int, ...], k: int, m: int, api: str) -> None:
    if not position and not size:
        return
    if len(position) != 2 or len(size) != 2:
        fail(f"{api}: tile_position and tile_size are both (row, column) or both unset")
    for start, extent in zip(position, size, strict=True):
        expr = as_expr(start)
        if any(v % 32 for v in (expr.const, *expr.terms.values(), extent)) or expr.bounds()[1] + extent > PARTITIONS:
            fail(f"{api}: tile_position and tile_size are multiples of 32 inside the 128 x 128 array")
    if tuple(size) == (32, 32):
        fail(f"{api}: a PE tile of 32 x 32 does not exist on NeuronCore-v2")
    if k > size[0] or m > size[1]:
        fail(f"{api}: the stationary tile [{k}, {m}] exceeds tile_size {tuple(size)}")


def nc_transpose(data: Any, *, mask: Any = None, dtype: Any = None, engine: Any = "unknown") -> View:
    """[P, F] -> [F, P]. Tensor Engine: up to 128 x 128, SBUF to fp32 PSUM. Vector Engine: up to 32 x 32.

    The Tensor Engine multiplies by an identity matrix, so that an infinity or NaN makes NaN of its row. PSUM data
    goes to the Vector Engine unless `engine` says otherwise.
    """
    api = "nki.isa.nc_transpose"
    data = need(data, api, "data", "sbuf", "psum")
    p, f = data.shape[0], prod(data.shape[1:])
    name = str(getattr(engine, "name", engine)).replace("pe", "tensor")
    if name not in ("unknown", "tensor", "vector") or (name == "tensor" and data.buffer == "psum"):
        fail(
            f"{api}: the {name} engine does not transpose data in {data.buffer}; use the Tensor (SBUF) or Vector Engine"
        )
    vector = name == "vector" or data.buffer == "psum"
    limit = VECTOR_TRANSPOSE if vector else PARTITIONS
    if p > limit or f > limit:
        fail(f"{api}: a tile of [{p}, {f}] exceeds {limit} x {limit} on the {'Vector' if vector else 'Tensor'} Engine")
    axes: tuple[int | None, ...] = (0, 1) if data.ndim == 2 else (0, *[None] * (data.ndim - 1))
    reads: Reads = [(data, axes)]

    def compute(x: Array) -> Array:
        turned = np.asarray(x.reshape(len(x), -1).T)
        return turned if vector or np.isfinite(turned).all() else turned @ np.eye(len(x), dtype=np.float32)

    if vector:
        out = as_dtype(dtype) if dtype is not None else data.dtype
        return emit.result("transpose", "vector", (p, f), reads, (1, 0), compute, out, mask=mask)
    if dtype is not None and as_dtype(dtype) != float32:
        fail(
            f"{api}: the result is fp32 in PSUM on NeuronCore-v2, found "
            f"dtype={as_dtype(dtype)}; cast when copying to SBUF"
        )
    info = {"product": True, "transpose": True}
    return emit.result("nc_transpose", "pe", (p, f), reads, (1, 0), compute, float32, "psum", mask=mask, **info)
