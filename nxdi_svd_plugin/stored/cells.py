"""The eight cells into which the pivots of gate, up and down cut a slice of the intermediate neurons.

A neuron is a pivot of gate or not, of up or not, of down or not. Laid out in the Gray-code order of CELLS, the pivots
of gate and of up are one run each and those of down two, so a model slices and concatenates but never gathers. Cores
that share a slice (stored/cores.py) take the same share of every cell, so their pivots lie in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import Runs

CELLS = (
    (True, False, False),
    (True, False, True),
    (True, True, True),
    (True, True, False),
    (False, True, False),
    (False, True, True),
    (False, False, True),
    (False, False, False),
)
"""(pivot of gate, of up, of down)."""


def pivot_runs(mlp: Mlp) -> tuple[Runs, Runs, Runs]:
    """The pivots of gate, up and down; none where a projection has none."""
    gate, up, down = (p.pivots if isinstance(p, LowRank) else () for _, p in mlp.items())
    return gate, up, down


def cell_sizes(pivots: Sequence[Runs], width: int) -> list[int]:
    """Neurons in every cell of CELLS, for three pivot sets in a slice of `width` neurons."""
    edges = sorted({0, width, *(edge for runs in pivots for run in runs for edge in run)})
    sizes = dict.fromkeys(CELLS, 0)
    for start, stop in zip(edges, edges[1:], strict=False):
        gate, up, down = (any(a <= start < b for a, b in runs) for runs in pivots)
        sizes[gate, up, down] += stop - start
    return list(sizes.values())


def runs_of(sizes: Sequence[int]) -> tuple[Runs, Runs, Runs]:
    """Where the pivots of gate, up and down lie when cells of these sizes follow each other."""
    runs: tuple[list[tuple[int, int]], ...] = ([], [], [])
    start = 0
    for cell, size in zip(CELLS, sizes, strict=True):
        stop = start + size
        for run, member in zip(runs, cell, strict=True):
            if member and size:
                if run and run[-1][1] == start:
                    run[-1] = (run[-1][0], stop)
                else:
                    run.append((start, stop))
        start = stop
    gate, up, down = (tuple(run) for run in runs)
    return gate, up, down


def core_runs(mlp: Mlp, cores: int) -> dict[str, Runs]:
    """Where the pivots lie inside one of the cores that share a slice, by projection; a core alone has the whole slice.

    Raises:
        SvdError: a cell of the pivots does not divide by `cores`.
    """
    if cores == 1:
        return dict(zip(PROJECTIONS, pivot_runs(mlp), strict=True))
    part = mlp.width // mlp.groups
    sizes = cell_sizes(pivot_runs(mlp), part)
    odd = [size for size in sizes if size % cores]
    if odd and any(pivot_runs(mlp)):
        raise SvdError(
            f"{part} intermediate neurons have pivot cells of {odd} neurons, which do not divide over {cores} cores. "
            "Compress for this tensor-parallel degree (--tp-degree), or use one that divides the block of the recipe"
        )
    return dict(zip(PROJECTIONS, runs_of([size // cores for size in sizes]), strict=True))
