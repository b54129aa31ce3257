"""The MLP of one layer on one core in bfloat16 as the simulator counts it: dense, unfused and fused.

Unfused matmuls are blocked for least traffic (baselines.py) and get X transposed for free; between them X·U, and gate
and up before SwiGLU, go through HBM. calls.py has the calls, counts.py counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels.measure.calls import (
    DENSE,
    Call,
    Share,
    dense_mlp,
    fused_down,
    fused_up_gate,
    unfused_down,
    unfused_up_gate,
)
from nxdi_svd_plugin.kernels.measure.counts import count_call
from nxdi_svd_plugin.kernels.measure.plan import shard_width
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.kernel_fit import KernelFit, kernel_fit
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import Dense, Projection
from nxdi_svd_plugin.stored.runs import Runs, length


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
    """An MLP on one core.

    hidden: H. dense_width: the core's neurons before compression; width: those that the layer keeps.
    """

    hidden: int
    dense_width: int
    width: int
    gate: Share
    up: Share
    down: Share


def on_core(hidden: int, intermediate: int, mlp: Mlp, tp: int) -> Layer:
    """A stored MLP on one of `tp` cores.

    Raises:
        KernelError: the neurons do not divide by `tp`, or the MLP is in groups, which are not counted.
        SvdError: its pivots do not divide by `tp`.
    """
    if mlp.groups != 1:
        raise KernelError(f"an MLP in {mlp.groups} groups is not counted; only one group is")
    dense_width, width = shard_width(intermediate, tp), shard_width(mlp.width, tp)
    runs, tiles = core_runs(mlp, tp), kernel_fit(mlp, tp).pivots
    gate, up, down = (_share(p, runs[name], tiles.get(name, ())) for name, p in mlp.items())
    return Layer(hidden, dense_width, width, gate, up, down)


def _share(projection: Projection, runs: Runs, tiles: Runs) -> Share:
    return DENSE if isinstance(projection, Dense) else Share(projection.rank, length(runs), tiles)


def dense(layer: Layer, tokens: int) -> Cost:
    """The uncompressed MLP: three matmuls and SwiGLU."""
    return _cost(dense_mlp(tokens, layer.hidden, layer.dense_width))


def unfused(layer: Layer, tokens: int) -> Cost:
    """Two matmuls a low-rank projection, one a dense one, and SwiGLU."""
    return fused(layer, KernelFit({}, {}), tokens)


def fused(layer: Layer, fit: KernelFit, tokens: int) -> Cost:
    """The kernels that run, unfused matmuls for the rest of the layer."""
    size = tokens, layer.hidden, layer.width
    up_gate, down = (*size, layer.gate, layer.up), (*size, layer.down)
    first = [fused_up_gate(*up_gate)] if fit.up_gate else unfused_up_gate(*up_gate)
    return _cost([*first, *([fused_down(*down)] if fit.down else unfused_down(*down))])


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
