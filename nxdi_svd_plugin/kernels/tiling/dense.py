"""Blocks of the dense baseline for the least HBM traffic: an operand stays in SBUF, or a block of fp32 sums does."""

from collections.abc import Iterator
from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BYTES, tiles

SUM_DEPTH = 3 * PARTITIONS
"""Contraction of one addition to the sums in SBUF: below it the vector engine would take longer than the matmuls."""
X_COLUMNS = 1024
"""Columns of rows that are loaded at once to be transposed: runs of 2 KiB in 16 bits."""
PASS_COLUMNS = 2048
"""Columns of one tile of a pass over HBM that two tensors go into and one comes out of."""


@dataclass(frozen=True)
class Operand:
    """`block` columns of one operand (x if `keeps_x`, else w) are kept, `stream` columns of the other are one load.

    `store`: columns of an output row that are made and stored at once; 0: all of the block.
    """

    keeps_x: bool
    block: int
    stream: int
    store: int = 0


@dataclass(frozen=True)
class Output:
    """fp32 sums of `rows` by `columns` of the output are kept while K is streamed, `depth` of it in one load."""

    rows: int
    columns: int
    depth: int = SUM_DEPTH


Plan = Operand | Output


def dense_hbm_bytes(rows: int, deep: int, columns: int, itemsize: int, plan: Plan) -> int:
    """HBM bytes of X·W [rows, columns]: each operand once per block of what it is streamed past, the output once."""
    if isinstance(plan, Output):
        x_reads, w_reads = -(-columns // plan.columns), -(-rows // plan.rows)
    else:
        x_reads, w_reads = (1, -(-rows // plan.block)) if plan.keeps_x else (-(-columns // plan.block), 1)
    return itemsize * (x_reads * rows * deep + w_reads * deep * columns + rows * columns)


def dense_sbuf_bytes(deep: int, itemsize: int, plan: Plan, in_flight: int = 1, made: bool = False) -> int:
    """SBUF bytes per partition: what is kept, the streamed loads, one row of output tiles.

    `made`: a block of w is not loaded but transposed from rows that are; it is there once, whatever is in flight.
    Sums leave SBUF after the last load, so that their output rows take the room of the loads.
    """
    of_w = 1 if made else in_flight
    if isinstance(plan, Output):
        loads = tiles(min(deep, plan.depth)) * (in_flight * plan.rows + of_w * plan.columns)
        return 4 * tiles(plan.rows) * plan.columns + itemsize * loads
    output = plan.store or (plan.stream if plan.keeps_x else plan.block)
    streams = (of_w if plan.keeps_x else in_flight) * plan.stream
    return itemsize * (tiles(deep) * (plan.block + streams) + in_flight * output)


@dataclass(frozen=True)
class Product:
    """X·W [rows, columns] over `deep`, as the stages of kernels/stages/gemm.py do it.

    x, w: how the operands lie in HBM. "plain": [deep, n]. "packed": as kernels/packing.py does, in tiles of 128 columns
    (x) or `w_tile` (w). "interleaved": [deep, n], row p·(deep/128) + j on partition p, tile j. "rows": [n, deep], to be
    transposed. `width`: columns of one matmul, `tile`: of a packed tile of w, if that is less.
    """

    rows: int
    deep: int
    columns: int
    plan: Plan
    x: str = "plain"
    w: str = "plain"
    width: int = MOVING
    tile: int = 0

    @property
    def w_tile(self) -> int:
        """Columns of a packed tile of w."""
        return self.tile or self.width


def choose_dense(
    rows: int,
    deep: int,
    columns: int,
    itemsize: int = 2,
    step: int = PARTITIONS,
    depths: tuple[int, ...] = (SUM_DEPTH,),
    taken: int = 0,
) -> Plan:
    """The blocks with the least HBM traffic that leave room for two streamed loads; a kept operand among equals.

    `step`: blocks of columns are multiples of it. `depths`: of the loads beside sums in SBUF, the first among equals.
    `taken`: bytes of SBUF that are not for this. A baseline has all of it, more than our own plans keep to.
    """
    plans = dense_plans(rows, deep, columns, itemsize, step, depths, taken)
    return min(plans, key=lambda plan: dense_hbm_bytes(rows, deep, columns, itemsize, plan))


def dense_plans(
    rows: int, deep: int, columns: int, itemsize: int, step: int, depths: tuple[int, ...], taken: int
) -> list[Plan]:
    """All blocks that fit.

    Raises:
        KernelError: there are none.
    """
    plans: list[Plan] = [*operands(rows, columns, step), *outputs(rows, columns, step, depths)]
    plans = [plan for plan in plans if dense_sbuf_bytes(deep, itemsize, plan, 2) <= SBUF_BYTES - taken]
    if not plans:
        raise KernelError(f"matmul: K = {deep} leaves no room for a block; split the contraction")
    return plans


def operands(rows: int, columns: int, step: int) -> list[Operand]:
    """With an operand kept; the widest stream first, then blocks of whole matmuls."""
    plans = []
    for keeps_x in (True, False):
        kept, streamed = (rows, columns) if keeps_x else (columns, rows)
        kept_step, stream_step = (PARTITIONS, step) if keeps_x else (step, PARTITIONS)
        for stream in {min(streamed, max(1, width // stream_step) * stream_step) for width in (128, 256, 512, 1024)}:
            for block in range(kept_step, -(-kept // kept_step) * kept_step + 1, kept_step):
                plans.append(Operand(keeps_x, min(block, kept), stream))
    return sorted(plans, key=lambda plan: (-plan.stream, plan.block % MOVING))


def outputs(rows: int, columns: int, step: int, depths: tuple[int, ...]) -> Iterator[Output]:
    """With sums kept, of at least 512 rows and columns (runs of 1 KiB in bf16) where there are as many."""
    for depth in depths:
        for high in _extents(rows, PARTITIONS):
            for wide in _extents(columns, MOVING if MOVING % step == 0 else step):
                yield Output(high, wide, depth)


def _extents(total: int, step: int) -> list[int]:
    least = MOVING if MOVING % step == 0 else step  # a packed column tile of 384 is streamed in runs long enough
    return [min(total, size) for size in range(least, total + step, step)] or [total]
