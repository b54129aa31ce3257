"""What one instruction costs: engine cycles, FLOPs, HBM bytes and DMA runs for the part of its space that it covers.

Cycle formulas are the "Estimated instruction cost" sections of `nki/api/nki/isa/__init__.py` (aws-neuron-sdk v2.26.1);
N is the number of elements per partition. They are averages for back-to-back instructions, so every latency made of
them is a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import GPSIMD_START, MIN_CYCLES, busy_seconds
from nxdi_svd_plugin.simulator.program.dtypes import bfloat16, float16, float32
from nxdi_svd_plugin.simulator.program.extents import Extents
from nxdi_svd_plugin.simulator.program.program import Instr, Operand


@dataclass
class Cost:
    """Counters of one instruction execution, or of many."""

    cycles: Counter[str] = field(default_factory=Counter)
    issues: Counter[str] = field(default_factory=Counter)  # instructions; on the Tensor Engine passes over the data
    psum_seconds: float = 0.0  # of the Scalar and the Vector Engine, which do not access PSUM at the same time
    matmul_flops: int = 0
    transpose_flops: int = 0
    hbm_read_bytes: int = 0
    hbm_write_bytes: int = 0
    dma_count: int = 0
    dma_runs: Counter[int] = field(default_factory=Counter)

    def add(self, other: Cost, times: int) -> None:
        """Add `times` executions."""
        for engine, cycles in other.cycles.items():
            self.cycles[engine] += cycles * times
            self.issues[engine] += other.issues[engine] * times
        self.psum_seconds += other.psum_seconds * times
        for name in ("matmul_flops", "transpose_flops", "hbm_read_bytes", "hbm_write_bytes", "dma_count"):
            setattr(self, name, getattr(self, name) + getattr(other, name) * times)
        for length, number in other.dma_runs.items():
            self.dma_runs[length] += number * times


def instruction_cost(instr: Instr, extents: Extents) -> Cost:
    """Cost of one execution over the given extents; nothing if they are empty."""
    sizes = [high - low for low, high in extents]
    if min(sizes) <= 0 or instr.free:
        return Cost()
    if instr.engine == "dma":
        return _dma(instr, sizes)
    if instr.info.get("product"):
        return _tensor_engine(instr, sizes)
    cost = Cost()
    data = sizes[1:-1] if instr.op in ("max8", "bn_stats", "bn_aggr") else sizes[1:]  # without the result's own axis
    cycles = _element_wise(instr, prod(data))
    cost.cycles[instr.engine], cost.issues[instr.engine] = cycles, 1
    if instr.engine in ("scalar", "vector") and any(o.view.buffer == "psum" for o in (instr.write, *instr.reads)):
        cost.psum_seconds = busy_seconds(instr.engine, cycles, 1)
    return cost


def _tensor_engine(instr: Instr, sizes: list[int]) -> Cost:
    """matmul: sizes are K, M, N. transpose: P, F (the data is stationary, the identity moves)."""
    k, m, n = sizes if instr.op == "nc_matmul" else (sizes[0], prod(sizes[1:]), sizes[0])
    k *= instr.info.get("rows", 1)
    passes = 4 if any(operand.view.dtype == float32 for operand in instr.reads) else 1
    if instr.info.get("onezero"):
        passes = max(1, passes // 2)
    cost = Cost(Counter({"pe": passes * max(min(MIN_CYCLES, m), n)}), Counter({"pe": passes}))
    if instr.info.get("transpose"):
        cost.transpose_flops = 2 * k * m * n
    else:
        cost.matmul_flops = 2 * k * m * n
    return cost


def _element_wise(instr: Instr, n: int) -> int:
    operands = [instr.write, *instr.reads]
    dtypes = {operand.view.dtype for operand in operands}
    if instr.op == "activation_sum":
        return MIN_CYCLES
    if instr.op == "affine_select":
        return GPSIMD_START + n
    if instr.op == "memset" and instr.info["zero"] and dtypes <= {bfloat16, float16}:
        n = -(-n // 2)
    elif instr.op in ("tensor_tensor", "loop_reduce"):
        n *= 1 if _fast_pair(instr, dtypes) else 2
    elif instr.op in ("scalar_tensor_tensor", "tensor_tensor_scan"):
        n *= 2
    elif instr.op == "reciprocal":
        n *= 2  # the API page says 8; the Vector Engine's activity in two Trn1 profiles leaves 2.3 (docs/simulator.md)
    elif instr.op == "tensor_reduce" and dtypes == {bfloat16} and instr.info["alu"] in ("add", "sum", "max", "maximum"):
        n = -(-n // 2)
    return max(MIN_CYCLES, n)


def _fast_pair(instr: Instr, dtypes: set[np.dtype[Any]]) -> bool:
    """One operand in PSUM, or all bf16, contiguous and add, subtract or multiply."""
    views = [operand.view for operand in instr.reads]
    if "psum" in [view.buffer for view in views]:
        return True
    contiguous = all(view.strides[-1] == 1 for view in views)
    return dtypes == {bfloat16} and contiguous and instr.info["alu"] in ("add", "subtract", "multiply")


def _dma(instr: Instr, sizes: list[int]) -> Cost:
    cost = Cost(dma_count=1)
    elements = prod(sizes)
    source, target = instr.reads[0].view, instr.write.view
    if not source.base.on_chip:
        cost.hbm_read_bytes = elements * source.itemsize
    if not target.base.on_chip:
        cost.hbm_write_bytes = elements * target.itemsize
    hbm = instr.reads[0] if not source.base.on_chip else instr.write
    run = 1 if instr.info.get("transpose") else min(_run(operand, sizes) for operand in (instr.reads[0], instr.write))
    cost.dma_runs[run * hbm.view.itemsize] = elements // run
    return cost


def _run(operand: Operand, sizes: list[int]) -> int:
    """Elements that are contiguous in one descriptor; on chip a run ends at the partition."""
    run, view = 1, operand.view
    stop = 1 if view.base.on_chip else 0
    for at in range(view.ndim - 1, stop - 1, -1):
        axis = operand.axes[at]
        size = view.shape[at] if axis is None else sizes[axis]
        if size == 1:
            continue
        if view.strides[at] != run:
            break
        run *= size
    return run
