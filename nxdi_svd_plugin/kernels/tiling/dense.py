"""Blocks of the dense baseline for the least HBM traffic: an operand stays in SBUF, or a block of fp32 sums does."""

from collections.abc import Iterator
from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BYTES, tiles

SUM_DEPTH = 3 * PARTITIONS
"""Contraction of one addition to the sums in SBUF: below it the vector engine would take longer than the matmuls."""


@dataclass(frozen=True)
class Operand:
    """`block` columns of one operand (x if `keeps_x`, else w) are kept, `stream` columns of the other are one load."""

    keeps_x: bool
    block: int
    stream: int


@dataclass(frozen=True)
class Output:
    """fp32 sums of `rows` by `columns` of the output are kept while K is streamed, SUM_DEPTH of it in one load."""

    rows: int
    columns: int


Plan = Operand | Output


def dense_hbm_bytes(rows: int, deep: int, columns: int, itemsize: int, plan: Plan) -> int:
    """HBM bytes of X·W [rows, columns]: each operand once per block of what it is streamed past, the output once."""
    if isinstance(plan, Output):
        x_reads, w_reads = -(-columns // plan.columns), -(-rows // plan.rows)
    else:
        x_reads, w_reads = (1, -(-rows // plan.block)) if plan.keeps_x else (-(-columns // plan.block), 1)
    return itemsize * (x_reads * rows * deep + w_reads * deep * columns + rows * columns)


def dense_sbuf_bytes(deep: int, itemsize: int, plan: Plan, in_flight: int = 1) -> int:
    """SBUF bytes per partition: what is kept, the streamed loads, one row of output tiles.

    Sums leave SBUF after the last load, so that their output rows take the room of the loads.
    """
    if isinstance(plan, Output):
        loads = tiles(min(deep, SUM_DEPTH)) * (plan.rows + plan.columns)
        return 4 * tiles(plan.rows) * plan.columns + in_flight * itemsize * loads
    output = plan.stream if plan.keeps_x else plan.block
    return itemsize * (tiles(deep) * (plan.block + in_flight * plan.stream) + in_flight * output)


def choose_dense(rows: int, deep: int, columns: int, itemsize: int = 2) -> Plan:
    """The blocks with the least HBM traffic that leave room for two streamed loads; a kept operand among equals."""
    plans: list[Plan] = [*_operands(rows, deep, columns, itemsize), *_outputs(rows, deep, columns, itemsize)]
    if not plans:
        raise KernelError(f"matmul: K = {deep} leaves no room for a block; split the contraction")
    return min(plans, key=lambda plan: dense_hbm_bytes(rows, deep, columns, itemsize, plan))


def _operands(rows: int, deep: int, columns: int, itemsize: int) -> list[Operand]:
    """What fits with an operand kept; the widest stream first, then blocks of whole matmuls."""
    plans = []
    for keeps_x in (True, False):
        kept, streamed = (rows, columns) if keeps_x else (columns, rows)
        for stream in {min(streamed, width) for width in (128, 256, 512, 1024)}:
            for block in range(PARTITIONS, tiles(kept) * PARTITIONS + 1, PARTITIONS):
                plan = Operand(keeps_x, min(block, kept), stream)
                if dense_sbuf_bytes(deep, itemsize, plan, 2) <= SBUF_BYTES:
                    plans.append(plan)
    return sorted(plans, key=lambda plan: (-plan.stream, plan.block % MOVING))


def _outputs(rows: int, deep: int, columns: int, itemsize: int) -> Iterator[Output]:
    """What fits with sums kept, at least 512 rows and columns (runs of 1 KiB in bf16) where there are as many."""
    for high in _extents(rows, PARTITIONS):
        for wide in _extents(columns, MOVING):
            if dense_sbuf_bytes(deep, itemsize, plan := Output(high, wide), 2) <= SBUF_BYTES:
                yield plan


def _extents(total: int, step: int) -> list[int]:
    return [min(total, size) for size in range(MOVING, total + step, step)] or [total]
