"""What `mlp` does beside projecting: SwiGLU that stays in SBUF, and the sum of all groups into the rows of Y."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.stages.expand_transposed import all_made, gated, load_all_weights
from nxdi_svd_plugin.kernels.tiling.decode import MlpPlan
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles

Tensor = Any


def swiglu(h: Tensor, factors: list[list[Tensor]], vs: list[Tensor], bias: Tensor, plan: MlpPlan) -> None:
    """h [128, tiles·tokens] = silu(V_gateᵀ·T_gate) * (V_upᵀ·T_up) of a group, the pivots of down behind the others.

    `factors` has the tensors of T of gate and of up. Where a segment is a factor's pivots, a tile of T itself stands
    for the product. `bias` [128, 1] is zero.
    """
    for group in plan.outputs:
        for g in nl.affine_range(group.number):
            _swiglu_tiles(h, factors, vs, bias, plan, group, group.first + g * group.count)


def _swiglu_tiles(
    h: Tensor,
    factors: list[list[Tensor]],
    vs: list[Tensor],
    bias: Tensor,
    plan: MlpPlan,
    group: OutputTiles,
    tile: Any,
) -> None:
    """Tiles `tile`... after the start of the group's segment."""
    tokens, strip, segment = plan.up.tokens, plan.up.strips[0], group.segment
    weights = load_all_weights(vs, plan.up, group, tile)
    sums = all_made(weights, factors, plan.up, strip, strip.subs[0].pieces[0], group, tile)
    pivot = segment.pivots[2]
    target = segment.others[2] if pivot is None else tiles(plan.down.u_rows) + pivot
    h[0 : group.width, nl.ds((target + tile) * tokens, group.count * tokens)] = gated(
        sums[0], sums[1], bias, group.width, h.dtype
    )


def expand_sum(y: Tensor, ts: list[Tensor], vs: list[Tensor], plan: MlpPlan) -> None:
    """y [tokens, H] = sum over the groups of Tᵀ·V_down, in one PSUM sum a column tile; tokens are stationary."""
    width, outputs = plan.down.column_tile, plan.down.outputs
    for c in nl.affine_range(outputs // width):
        _sum_tile(y, ts, vs, plan, c * width, width)
    if outputs % width:
        _sum_tile(y, ts, vs, plan, outputs - outputs % width, outputs % width)


def _sum_tile(y: Tensor, ts: list[Tensor], vs: list[Tensor], plan: MlpPlan, left: Any, width: int) -> None:
    """Columns left... of y, `width` of them: one tile of every V."""
    tokens, rank, rows = plan.down.tokens, plan.down.ranks[0], plan.v_load * PARTITIONS
    total = nl.zeros((tokens, width), dtype=nl.float32, buffer=nl.psum)
    for g, v in enumerate(vs):
        for load in nl.affine_range(rank // rows):
            _add_load(total, ts[g], v, rank, left, width, load * plan.v_load, rows)
        if rank % rows:
            _add_load(total, ts[g], v, rank, left, width, rank // rows * plan.v_load, rank % rows)
    y[0:tokens, nl.ds(left, width)] = copy_on_scalar(total[0:tokens, 0:width], y.dtype)


def _add_load(total: Tensor, t: Tensor, v: Tensor, rank: int, left: Any, width: int, start: Any, rows: int) -> None:
    """Rank tiles start..., `rows` rows of V: one load, multiplied with T."""
    deep = tiles(rank)
    tokens = t.shape[1] // deep
    loaded = nl.load(v[0:PARTITIONS, nl.ds(left * deep + start * width, tiles(rows) * width)])
    for k in nl.affine_range(rows // PARTITIONS):
        total[0:tokens, 0:width] += nisa.nc_matmul(
            t[0:PARTITIONS, nl.ds((start + k) * tokens, tokens)], loaded[0:PARTITIONS, nl.ds(k * width, width)]
        )
    if rows % PARTITIONS:
        last = rows // PARTITIONS
        total[0:tokens, 0:width] += nisa.nc_matmul(
            t[0 : rows % PARTITIONS, nl.ds((start + last) * tokens, tokens)],
            loaded[0 : rows % PARTITIONS, nl.ds(last * width, width)],
        )
