"""DMA: loads, stores, HBM copies and the DMA-side transpose."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import elementwise, emit
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import View
from nxdi_svd_plugin.simulator.program.tracer import tracer

dma_engine = "dma"


def _skip(mode: Any) -> bool:
    return bool(getattr(mode, "name", mode) == "skip")


def load(src: Any, *, mask: Any = None, dtype: Any = None, mode: Any = None) -> View:
    """HBM to a new SBUF tile; the first axis becomes the partitions (at most 128)."""
    src = need(src, "nki.language.load", "src", "hbm")
    if src.shape[0] > PARTITIONS:
        fail(f"nki.language.load: partition dimension {src.shape[0]} exceeds the limit of {PARTITIONS}; load in tiles")
    axes: tuple[int | None, ...] = tuple(range(src.ndim))
    out = as_dtype(dtype) if dtype is not None else src.dtype
    made, compute = (axes, emit.as_is) if src.ndim > 1 else ((0, None), _column)
    return emit.result("load", "dma", src.shape, [(src, axes)], made, compute, out, mask=mask, skip=_skip(mode))


def _column(values: Array) -> Array:
    """A 1-D load gives [n, 1], as in AWS's fused_mamba."""
    return values[:, None]


def store(dst: Any, value: Any, *, mask: Any = None) -> None:
    """SBUF to HBM, cast to the destination's type; a PSUM value is copied to SBUF first."""
    dst = need(dst, "nki.language.store", "dst", "hbm")
    if not isinstance(value, View):
        filled = emit.allocate(dst.shape, dst.dtype, "sbuf")
        emit.fill(filled, value)
        value = filled
    value = need(value, "nki.language.store", "value", "sbuf", "psum")
    if value.buffer == "psum":
        value = elementwise.copy(value, dst.dtype, api="nki.language.store")
    if value.shape[0] > PARTITIONS:
        fail(f"nki.language.store: partition dimension {value.shape[0]} exceeds the limit of {PARTITIONS}")
    source = emit.fit(value, dst.shape)
    if source is None:
        fail(f"nki.language.store: value {list(value.shape)} does not fit the destination {list(dst.shape)}")
    axes = tuple(range(dst.ndim))
    emit.instruction("store", "dma", dst.shape, [(source, axes)], (dst, axes), emit.as_is, dst.dtype, mask)


def load_transpose2d(src: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """HBM [F, P] to SBUF [P, F] by element-wise DMA descriptors; P <= 128."""
    return _transposed_load("nki.language.load_transpose2d", src, mask, dtype)


def _transposed_load(api: str, src: Any, mask: Any, dtype: Any) -> View:
    src = need(src, api, "src", "hbm")
    if src.ndim != 2 or src.indirect is not None:
        fail(f"{api}: takes a 2-D tile without index tiles, found {list(src.shape)}")
    if src.shape[1] > PARTITIONS:
        fail(f"{api}: the second dimension {src.shape[1]} becomes the partitions and exceeds {PARTITIONS}")
    out = as_dtype(dtype) if dtype is not None else src.dtype
    return emit.result(
        "load_transpose2d", "dma", src.shape, [(src, (0, 1))], (1, 0), _transpose, out, mask=mask, transpose=True
    )


def _transpose(values: Array) -> Array:
    return np.asarray(values.T)


def dma_transpose(src: Any, *, axes: Any = None, mask: Any = None, dtype: Any = None, dge_mode: Any = None) -> View:
    """Not on Trn1: an error for our kernels; for other people's a 2-D transpose and a warning in the trace."""
    current = tracer()
    if current.strict or (axes is not None and tuple(axes) != (1, 0)):
        fail(
            "nki.isa.dma_transpose does not exist on Trn1; use nl.load_transpose2d or the tensor engine's nc_transpose"
        )
    current.warnings.append("nki.isa.dma_transpose does not exist on Trn1 (NeuronCore-v3 and later)")
    return _transposed_load("nki.isa.dma_transpose", src, mask, dtype)


def dma_copy(
    *, dst: Any, src: Any, mask: Any = None, dst_rmw_op: Any = None, oob_mode: Any = None, dge_mode: Any = None
) -> None:
    """Any of HBM and SBUF to any of HBM and SBUF, with a cast; `dst_rmw_op=np.add` accumulates."""
    api = "nki.isa.dma_copy"
    if getattr(dge_mode, "name", "") == "hwdge" and tracer().target == "trn1":
        fail(f"{api}: hardware descriptor generation (hwdge) does not exist on Trn1")
    if dst_rmw_op is not None and getattr(dst_rmw_op, "__name__", "") != "add":
        fail(f"{api}: dst_rmw_op is np.add or None")
    dst, src = need(dst, api, "dst", "hbm", "sbuf"), need(src, api, "src", "hbm", "sbuf")
    for view in (dst, src):
        if view.base.on_chip and view.shape[0] > PARTITIONS:
            fail(f"{api}: partition dimension {view.shape[0]} exceeds the limit of {PARTITIONS}")
    source = emit.fit(src, dst.shape) if not src.indirect else src
    if source is None or source.shape != dst.shape or prod(dst.shape) == 0:
        fail(f"{api}: source {list(src.shape)} does not fit the destination {list(dst.shape)}")
    axes = tuple(range(dst.ndim))
    info: dict[str, Any] = {"skip": _skip(oob_mode), "rmw": dst_rmw_op is not None}
    instr = emit.instruction(
        "dma_copy",
        "dma",
        dst.shape,
        [(source, axes)],
        (dst, axes),
        emit.as_is,
        dst.dtype,
        mask,
        inplace=info["rmw"],
        **info,
    )
    instr.accumulate = info["rmw"] and not dst.indirect
