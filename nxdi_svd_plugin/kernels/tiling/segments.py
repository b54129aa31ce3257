"""Where the identity block of an interpolative factor lies on the intermediate axis, in whole 128-row tiles.

V = [I | C] (gate, up) or U = [I ; C] (down), up to the order of I: a pivot tile of I is a tile of (X·U)ᵀ itself, the
others are made with C. The first pivot tile belongs to the first 128 columns of the rank, and so on.
"""

from dataclasses import dataclass

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.stored.runs import Runs


@dataclass(frozen=True)
class Segment:
    """Tiles `start`..`stop` of I, in which every factor has either only pivots or none.

    `pivots[f]` is factor f's rank tile that tile `start` is, or None; `others[f]` the tile of its C otherwise.
    """

    start: int
    stop: int
    pivots: tuple[int | None, ...]
    others: tuple[int, ...]


def segments(extent: int, runs: tuple[Runs, ...]) -> list[Segment]:
    """Cut the `extent` tiles of I wherever a run of any factor (in tiles) begins or ends."""
    edges = sorted({0, extent, *(edge for each in runs for run in each for edge in run)})
    return [
        Segment(
            start,
            stop,
            tuple(_before(each, start) if _inside(each, start) else None for each in runs),
            tuple(start - _before(each, start) for each in runs),
        )
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


@dataclass(frozen=True)
class OutputTiles:
    """Tiles of the intermediate axis that one load of V makes: `number` groups of `count` tiles of `width` neurons.

    The first group begins `first` tiles after the start of `segment`.
    """

    segment: Segment
    first: int
    count: int
    width: int
    number: int


def output_tiles(parts: tuple[Segment, ...], outputs: int, step: int) -> tuple[OutputTiles, ...]:
    """All tiles of `outputs` neurons, `step` at once where a segment has so many; last, what is no whole tile."""
    found: list[OutputTiles] = []
    for part in parts:
        number, rest = divmod(min(part.stop, outputs // PARTITIONS) - part.start, step)
        found += [OutputTiles(part, 0, step, PARTITIONS, number)] if number else []
        found += [OutputTiles(part, number * step, rest, PARTITIONS, 1)] if rest else []
    if outputs % PARTITIONS:
        last = outputs // PARTITIONS - parts[-1].start
        found.append(OutputTiles(parts[-1], last, 1, outputs % PARTITIONS, 1))
    return tuple(found)


def _inside(runs: Runs, tile: int) -> bool:
    return any(start <= tile < stop for start, stop in runs)


def _before(runs: Runs, tile: int) -> int:
    """Pivot tiles before `tile`."""
    return sum(max(0, min(stop, tile) - start) for start, stop in runs)
