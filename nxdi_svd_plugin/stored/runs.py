"""Runs: ascending, separate ranges [start, stop). Where pivots lie among the intermediate neurons is written so."""

from __future__ import annotations

from typing import Any

Runs = tuple[tuple[int, int], ...]


def parse_runs(value: Any) -> Runs | None:
    """Runs out of JSON's nested lists; None when they are no ascending, separate ranges of whole numbers."""
    if not isinstance(value, (list, tuple)):
        return None
    edges: list[Any] = []
    for run in value:
        if not isinstance(run, (list, tuple)) or len(run) != 2:
            return None
        edges += run
    if any(not isinstance(edge, int) or isinstance(edge, bool) or edge < 0 for edge in edges):
        return None
    return tuple(zip(edges[::2], edges[1::2], strict=True)) if sorted(set(edges)) == edges else None


def length(runs: Runs) -> int:
    """How many numbers lie in the runs."""
    return sum(stop - start for start, stop in runs)


def complement(runs: Runs, width: int) -> Runs:
    """The runs of 0..width-1 that are not in `runs`."""
    edges = [0, *(edge for run in runs for edge in run), width]
    return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)


def side_by_side(counts: tuple[int, ...], extent: int) -> tuple[Runs, ...]:
    """Runs of so many numbers, one set after the other, round the end of the `extent`: where the pivots of a layer
    whose weights are not known yet may be. No byte or cycle of a kernel's plan depends on where they are."""
    found, first = [], 0
    for count in counts:
        stop = first + count
        wrapped = [(0, stop - extent), (first, extent)] if stop > extent else [(first, stop)]
        found.append(tuple((a, b) for a, b in wrapped if a < b))
        first = stop % extent
    return tuple(found)
