"""The work of `mlp`: what kernels/fused_mlp.py does with its plan, counted."""

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import MlpPlan, mlp_plan
from nxdi_svd_plugin.kernels.tiling.product_work import add_transposed_rows
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles
from nxdi_svd_plugin.kernels.tiling.strip_work import project
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


def mlp_work(up: Chain, down: Chain, groups: int = 1) -> Work:
    """Of one call for the halves of one group (tiling/decode.py)."""
    work, plan = Work(up.itemsize), mlp_plan(up, down, groups)
    pieces = plan.up.strips[0].subs[0].pieces
    work.constants(up.needs_identity, swiglu=True)
    add_transposed_rows(work, 1, up.tokens, up.inputs, plan.up.x_columns)
    for rank in plan.up.ranks:
        project(work, groups, pieces, plan.up, rank)
    for group in plan.outputs:
        _swiglu(work, plan, group)
    project(work, groups, pieces, plan.down, plan.down.ranks[0])
    _sum(work, plan)
    work.dma(1, up.tokens, up.inputs)
    return work


def _swiglu(work: Work, plan: MlpPlan, group: OutputTiles) -> None:
    """stages/mlp.py, swiglu: as that of `up_gate`, but the result stays."""
    times, elements = plan.groups * group.number, group.count * plan.up.tokens
    gate, up = (pivot is None for pivot in group.segment.pivots[:2])
    deep = [tiles(rank) for rank, made in zip(plan.up.ranks, (gate, up), strict=True) if made]
    for each in deep:
        work.dma(times, PARTITIONS, group.count * each * group.width)
    work.matmul(times * group.count * sum(deep), group.width, plan.up.tokens)
    work.scalar(times, elements, from_psum=gate)
    work.vector(times, (1 if up else 2) * elements, from_psum=up)


def _sum(work: Work, plan: MlpPlan) -> None:
    """stages/mlp.py, expand_sum."""
    down = plan.down
    for width, column_tiles in sizes(down.outputs, down.column_tile):
        for rows, loads in sizes(down.ranks[0], plan.v_load * PARTITIONS):
            work.dma(column_tiles * plan.groups * loads, PARTITIONS, tiles(rows) * width)
        work.matmul(column_tiles * plan.groups * tiles(down.ranks[0]), down.tokens, width)
        work.scalar(column_tiles, width)
