"""One order of the intermediate dimension I for the pivots of gate, up and down.

Permuting I inside an MLP (columns of gate and up, rows of down) changes nothing. Three pivot sets cut I into at most
eight cells (in gate's set or not, in up's or not, in down's or not). Laid out in the Gray-code order below, the pivots
of gate and of up are one run each and those of down two, so the model slices and concatenates but never gathers. Under
tensor parallelism every rank takes the same share of every cell, so the pivots split evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.layers import Ranges

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


def cells(pivot_sets: Sequence[Tensor], width: int) -> list[Tensor]:
    """Cut 0..width-1 into the eight cells of three pivot sets (gate, up, down; an empty set where there are none)."""
    inside = torch.zeros(3, width, dtype=torch.bool)
    for row, pivots in zip(inside, pivot_sets, strict=True):
        row[pivots] = True
    return [torch.nonzero((inside == torch.tensor(cell)[:, None]).all(0)).flatten() for cell in CELLS]


def common_order(pivot_sets: Sequence[Tensor], width: int) -> tuple[Tensor, tuple[Ranges, Ranges, Ranges]]:
    """The order of I (new position -> old index, int64 [width]) and where the pivots of gate, up, down are in it."""
    parts = cells(pivot_sets, width)
    return torch.cat(parts), _ranges([len(part) for part in parts])


def _ranges(sizes: Sequence[int]) -> tuple[Ranges, Ranges, Ranges]:
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


def indices(ranges: Ranges) -> Tensor:
    """The positions inside `ranges`, ascending."""
    return torch.cat([torch.arange(a, b) for a, b in ranges]) if ranges else torch.empty(0, dtype=torch.long)


def complement(ranges: Ranges, width: int) -> Ranges:
    """The runs of 0..width-1 that are not in `ranges`."""
    edges = [0, *(edge for run in ranges for edge in run), width]
    return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)


def split_evenly(ranges: Mapping[str, Ranges], width: int, parts: int) -> tuple[list[Tensor], dict[str, Ranges]]:
    """Share I out over `parts` tensor-parallel ranks so that every rank has the same layout.

    Args:
        ranges: pivots of "gate_proj", "up_proj", "down_proj" in the stored order; a missing key has none.
    Returns:
        For each rank the stored positions it takes, in its own order, and the pivot ranges inside a rank.
    Raises:
        SvdError: a cell of the pivots does not divide by `parts`.
    """
    names = ("gate_proj", "up_proj", "down_proj")
    cut = cells([indices(ranges.get(name, ())) for name in names], width)
    odd = [len(part) for part in cut if len(part) % parts]
    if odd:
        raise SvdError(
            f"the intermediate dimension {width} has pivot cells of {odd} neurons, which do not divide over {parts} "
            f"ranks. Use a tensor-parallel degree that divides the block of the recipe, or compress with a larger block"
        )
    shares = [[part[len(part) // parts * i : len(part) // parts * (i + 1)] for part in cut] for i in range(parts)]
    local = _ranges([len(part) // parts for part in cut])
    return [torch.cat(share) for share in shares], dict(zip(names, local, strict=True))
