"""One order of the intermediate neurons for the pivots of gate, up and down.

Permuting them inside an MLP (columns of gate and up, rows of down) changes nothing; cells.py says which order and why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nxdi_svd_plugin.stored.cells import CELLS, core_runs, pivot_runs, runs_of
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.runs import Runs


def cells(pivot_sets: Sequence[Tensor], width: int) -> list[Tensor]:
    """Cut 0..width-1 into the eight cells of three pivot sets (gate, up, down; an empty set where there are none)."""
    inside = torch.zeros(3, width, dtype=torch.bool)
    for row, pivots in zip(inside, pivot_sets, strict=True):
        row[pivots] = True
    return [torch.nonzero((inside == torch.tensor(cell)[:, None]).all(0)).flatten() for cell in CELLS]


def common_order(pivot_sets: Sequence[Tensor], width: int) -> tuple[Tensor, tuple[Runs, Runs, Runs]]:
    """The order of the neurons (new position -> old index, int64 [width]) and where the pivots of gate, up, down are in
    it."""
    parts = cells(pivot_sets, width)
    return torch.cat(parts), runs_of([len(part) for part in parts])


def indices(runs: Runs) -> Tensor:
    """The positions inside `runs`, ascending."""
    return torch.cat([torch.arange(a, b) for a, b in runs]) if runs else torch.empty(0, dtype=torch.long)


def split_evenly(mlp: Mlp, cores: int) -> list[Tensor]:
    """For each core the stored positions of the slice that it takes, in its order; `cells.core_runs` has the pivots.

    Raises:
        SvdError: a cell of the pivots does not divide by `cores`.
    """
    core_runs(mlp, cores)
    cut = cells([indices(runs) for runs in pivot_runs(mlp)], mlp.width // mlp.groups)
    shares = [part.chunk(cores) if len(part) else [part] * cores for part in cut]
    return [torch.cat([share[core] for share in shares]) for core in range(cores)]
