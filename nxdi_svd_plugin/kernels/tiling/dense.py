"""Blocks of the dense baseline: which operand stays in SBUF, and how much of it, for the least HBM traffic."""

from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels.tiling.limits import MOVING, PARTITIONS, SBUF_BYTES, tiles


@dataclass(frozen=True)
class Dense:
    """`block` columns of one operand (x if `keeps_x`, else w) are kept, `stream` columns of the other are one load."""

    keeps_x: bool
    block: int
    stream: int


def dense_hbm_bytes(rows: int, deep: int, columns: int, itemsize: int, plan: Dense) -> int:
    """HBM bytes of X·W [rows, columns]: the kept operand once, the other once per block, the output once."""
    kept, streamed = (rows, columns) if plan.keeps_x else (columns, rows)
    return itemsize * (deep * kept + -(-kept // plan.block) * deep * streamed + rows * columns)


def dense_sbuf_bytes(deep: int, itemsize: int, plan: Dense, in_flight: int = 1) -> int:
    """SBUF bytes per partition: the kept block, the streamed loads, one row of output tiles."""
    output = plan.stream if plan.keeps_x else plan.block
    return itemsize * (tiles(deep) * (plan.block + in_flight * plan.stream) + in_flight * output)


def choose_dense(rows: int, deep: int, columns: int, itemsize: int = 2) -> Dense:
    """The blocks with the least HBM traffic that leave room for two streamed loads; the widest stream among equals."""
    plans = []
    for keeps_x in (True, False):
        kept, streamed = (rows, columns) if keeps_x else (columns, rows)
        for stream in {min(streamed, width) for width in (128, 256, 512, 1024)}:
            for block in range(PARTITIONS, tiles(kept) * PARTITIONS + 1, PARTITIONS):
                plan = Dense(keeps_x, min(block, kept), stream)
                if dense_sbuf_bytes(deep, itemsize, plan, 2) <= SBUF_BYTES:
                    plans.append(plan)
    if not plans:
        raise KernelError(f"matmul: K = {deep} leaves no room for a block; split the contraction")
    return min(plans, key=lambda p: (dense_hbm_bytes(rows, deep, columns, itemsize, p), -p.stream, p.block % MOVING))
