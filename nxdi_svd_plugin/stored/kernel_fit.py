"""Which of a layer's projections the fused kernels run, and where the pivots of interpolative ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nxdi_svd_plugin.kernels.tiling.limits import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.segments import Runs
from nxdi_svd_plugin.stored.layers import Projection, Ranges

DOWN, UP_GATE = ("down_proj",), ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Fusion:
    """What the kernels do in one layer.

    up_gate, down: whether that kernel runs. `up_gate` takes two factored projections of one form.
    pivots: for every projection that a kernel runs, its pivots as runs of 128-neuron tiles of this rank's share of I.
    misfit: projections that have a kernel, but not with these pivots: they are no whole tiles on every rank.
    """

    up_gate: bool = False
    down: bool = False
    pivots: dict[str, Runs] = field(default_factory=dict)
    misfit: tuple[str, ...] = ()


def fusion(projections: Mapping[str, Projection], local: Mapping[str, Ranges], width: int) -> Fusion:
    """The kernels of a layer.

    Args:
        local: the pivots of interpolative projections inside one rank (interpolative.shares).
        width: neurons of the intermediate dimension on one rank.
    """
    runs = {name: tile_runs(local.get(name, ()), width) for name, p in projections.items() if p.form != "dense"}
    pivots = {name: found for name, found in runs.items() if found is not None}
    misfit = tuple(name for name in runs if name not in pivots)
    same = len({projections[name].form for name in UP_GATE}) == 1
    return Fusion(same and set(UP_GATE) <= set(pivots), set(DOWN) <= set(pivots), pivots, misfit)


def tile_runs(ranges: Ranges, width: int) -> Runs | None:
    """The ranges in tiles of 128 neurons; None if they or the `width` are not whole tiles. No ranges: no runs."""
    if not ranges:
        return ()
    if any(edge % PARTITIONS for edge in (width, *(edge for run in ranges for edge in run))):
        return None
    return tuple((start // PARTITIONS, stop // PARTITIONS) for start, stop in ranges)
