"""The MLP of one layer on one core in bfloat16 as the simulator counts it: dense, unfused and fused.

Unfused matmuls are blocked for least traffic (baselines.py) and get X transposed for free; between them X·U, and gate
and up before SwiGLU, go through HBM. calls.py has the calls, counts.py counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nxdi_svd_plugin.kernels.measure.calls import (
    DENSE,
    Call,
    Share,
    dense_mlp,
    fused_down,
    fused_mlp,
    fused_up_gate,
    sum_of_groups,
    unfused_down,
    unfused_up_gate,
)
from nxdi_svd_plugin.kernels.measure.counts import count_call
from nxdi_svd_plugin.kernels.measure.plan import shard_width
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import fits, mlp_chains
from nxdi_svd_plugin.kernels.tiling.groups import calls_of
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.cores import sharing
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

    hidden: H. dense_width: the core's neurons before compression; width: those of a group that the layer keeps.
    gate, up, down: what the core has of a group, of which it has `groups` (stored/cores.py).
    """

    hidden: int
    dense_width: int
    width: int
    gate: Share
    up: Share
    down: Share
    groups: int = 1


def on_core(hidden: int, intermediate: int, mlp: Mlp, tp: int) -> Layer:
    """A stored MLP on one of `tp` cores.

    Raises:
        KernelError: the neurons do not divide by the cores that share them.
        SvdError: the groups, or the pivots of a group, do not go evenly on `tp` cores.
    """
    shared = sharing(mlp.groups, tp)
    dense_width, width = shard_width(intermediate, tp), shard_width(mlp.width // mlp.groups, shared.cores)
    runs, tiles = core_runs(mlp, shared.cores), kernel_fit(mlp, tp).pivots
    gate, up, down = (_share(p, runs[name], tiles.get(name, ())) for name, p in mlp.items())
    return Layer(hidden, dense_width, width, gate, up, down, shared.groups)


def _share(projection: Projection, runs: Runs, tiles: Runs) -> Share:
    if isinstance(projection, Dense):
        return DENSE
    return Share(projection.rank // projection.groups, length(runs), tiles)


def dense(layer: Layer, tokens: int) -> Cost:
    """The uncompressed MLP: three matmuls and SwiGLU."""
    return _cost(dense_mlp(tokens, layer.hidden, layer.dense_width))


def unfused(layer: Layer, tokens: int) -> Cost:
    """Two matmuls a low-rank projection, one a dense one, and SwiGLU."""
    return fused(layer, KernelFit({}, {}), tokens)


def fused(layer: Layer, fit: KernelFit, tokens: int) -> Cost:
    """The kernels that run, unfused matmuls for the rest of the layer."""
    return _cost(fused_calls(layer, fit, tokens))


def fused_calls(layer: Layer, fit: KernelFit, tokens: int) -> list[Call]:
    """The calls of `fused`, in order: one for all groups where that is no worse (tiling/groups.py), else one for each.

    A dense down projection takes all of them.
    """
    size, groups = (tokens, layer.hidden, layer.width), layer.groups
    if kernels_of(layer, fit, tokens) == ["mlp"]:
        return [fused_mlp(*size, layer.gate, layer.up, layer.down, groups)]
    first = unfused_up_gate(*size, layer.gate, layer.up) * groups
    if fit.up_gate:
        ranks, pivots = (layer.gate.rank, layer.up.rank), (layer.gate.pivots, layer.up.pivots)
        calls = calls_of(Chain("up_gate", tokens, layer.hidden, ranks, layer.width, pivots=pivots), groups)
        first = [fused_up_gate(*size, layer.gate, layer.up, groups // calls)] * calls
    if layer.down == DENSE:
        return [*first, *unfused_down(tokens, layer.hidden, layer.width * groups, DENSE)]
    if not fit.down:
        last = unfused_down(*size, layer.down)
        return [*first, *last * groups, *sum_of_groups(tokens, layer.hidden, groups)]
    chain = Chain("down", tokens, layer.width, (layer.down.rank,), layer.hidden, pivots=(layer.down.pivots,))
    calls = calls_of(chain, groups)
    down = fused_down(*size, layer.down, groups // calls)
    return [*first, *[down] * calls, *sum_of_groups(tokens, layer.hidden, calls)]


def kernels_of(layer: Layer, fit: KernelFit, tokens: int) -> list[str]:
    """The kernels that run: `mlp` where it takes so many tokens, else those of `up_gate` and `down` that fit."""
    ranks, pivots = zip(*((each.rank, each.pivots) for each in (layer.gate, layer.up, layer.down)), strict=True)
    if (
        fit.up_gate
        and fit.down
        and fits(*mlp_chains(tokens, layer.hidden, layer.width, ranks, pivots=pivots), layer.groups)
    ):
        return ["mlp"]
    return [name for name, runs in (("up_gate", fit.up_gate), ("down", fit.down)) if runs]


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
