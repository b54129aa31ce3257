"""What `mlp` does beside projecting: SwiGLU that stays in SBUF, and the sum of all groups into the rows of Y."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar, made, weights_unless_pivots
from nxdi_svd_plugin.kernels.tiling.decode import MlpPlan
from nxdi_svd_plugin.kernels.tiling.segments import Segment

Tensor = Any


def swiglu(
    h: Tensor, gates: list[Tensor], ups: list[Tensor], v_gate: Tensor, v_up: Tensor, bias: Tensor, plan: MlpPlan
) -> None:
    """h [128, tiles·tokens] = silu(V_gateᵀ·T_gate) * (V_upᵀ·T_up) of a group, the pivots of down behind the others.

    Where a segment is a factor's pivots, a tile of T itself stands for the product. `bias` [128, 1] is zero.
    """
    step, whole = plan.up.v_tiles, plan.up.outputs // PARTITIONS
    for segment in plan.segments:
        full = min(segment.stop, whole) - segment.start
        for g in nl.affine_range(full // step):
            _swiglu_tiles(h, gates, ups, v_gate, v_up, bias, plan, segment, g * step, step, PARTITIONS)
        if full % step:
            _swiglu_tiles(h, gates, ups, v_gate, v_up, bias, plan, segment, full - full % step, full % step, PARTITIONS)
    if plan.up.outputs % PARTITIONS:
        last = plan.segments[-1]
        _swiglu_tiles(
            h, gates, ups, v_gate, v_up, bias, plan, last, whole - last.start, 1, plan.up.outputs % PARTITIONS
        )


def _swiglu_tiles(
    h: Tensor,
    gates: list[Tensor],
    ups: list[Tensor],
    v_gate: Tensor,
    v_up: Tensor,
    bias: Tensor,
    plan: MlpPlan,
    segment: Segment,
    tile: Any,
    count: int,
    width: int,
) -> None:
    """Tiles segment.start + `tile`..., `count` of `width` neurons each."""
    tokens, strip = plan.up.tokens, plan.up.strips[0]
    piece = strip.subs[0].pieces[0]
    gate_weights = weights_unless_pivots(v_gate, plan.up.ranks[0], segment, 0, tile, count, width)
    up_weights = weights_unless_pivots(v_up, plan.up.ranks[1], segment, 1, tile, count, width)
    made_gate = made(gate_weights, gates, plan.up, 0, strip, piece, segment, tile, count, width)
    made_up = made(up_weights, ups, plan.up, 1, strip, piece, segment, tile, count, width)
    gated = nisa.activation(op=nl.silu, data=made_gate, bias=bias[0:width, 0:1], dtype=nl.float32)
    pivot = segment.pivots[2]
    target = segment.others[2] if pivot is None else tiles(plan.down.u_rows) + pivot
    h[0:width, nl.ds((target + tile) * tokens, count * tokens)] = nisa.tensor_tensor(
        gated, made_up, op=nl.multiply, dtype=h.dtype
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
