"""The MLP of one layer on one core in bfloat16 as the simulator counts it: fused kernels, unfused matmuls, dense.

Unfused matmuls are blocked for least traffic (baselines.py) and get X transposed for free; between them X·U, and gate and
up before SwiGLU, go through HBM. calls.py has the calls, counts.py counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nxdi_svd_plugin.kernels.measure.calls import (
    Call,
    Part,
    dense_mlp,
    fused_down,
    fused_up_gate,
    unfused_down,
    unfused_up_gate,
)
from nxdi_svd_plugin.kernels.measure.counts import count_call


@dataclass(frozen=True)
class Cost:
    """HBM bytes, tensor-engine cycles (counted), microseconds (modelled: one call after the other) and the calls."""

    hbm_read_bytes: int
    hbm_write_bytes: int
    hbm_bytes: int
    pe_cycles: int
    modelled_us: float
    calls: list[str]


@dataclass(frozen=True)
class Layer:
    """An MLP on one core: `width` neurons of I, and the projections."""

    hidden: int
    width: int
    gate: Part
    up: Part
    down: Part


def dense(layer: Layer, tokens: int) -> Cost:
    """Three matmuls and SwiGLU."""
    return _cost(dense_mlp(tokens, layer.hidden, layer.width))


def unfused(layer: Layer, tokens: int) -> Cost:
    """Two matmuls a factored projection, one a dense one, and SwiGLU."""
    return fused(layer, tokens, False, False)


def fused(layer: Layer, tokens: int, runs_up_gate: bool, runs_down: bool) -> Cost:
    """The kernels where they run, unfused matmuls for the rest of the layer."""
    size = tokens, layer.hidden, layer.width
    up_gate, down = (*size, layer.gate, layer.up), (*size, layer.down)
    first = [fused_up_gate(*up_gate)] if runs_up_gate else unfused_up_gate(*up_gate)
    return _cost([*first, *([fused_down(*down)] if runs_down else unfused_down(*down))])


def _cost(calls: list[Call]) -> Cost:
    traces = [count_call(call) for call in calls]
    return Cost(
        sum(trace.hbm_read_bytes for trace in traces),
        sum(trace.hbm_write_bytes for trace in traces),
        sum(trace.hbm_bytes for trace in traces),
        sum(trace.pe_cycles for trace in traces),
        sum(trace.modelled_latency_us for trace in traces),
        [str(call) for call in calls],
    )
