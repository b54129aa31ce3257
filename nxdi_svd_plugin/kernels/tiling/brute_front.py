"""The pairs of modelled time and HBM bytes that any plan reaches: an exhaustive search, for plans chosen by both.

A lower bound of both: the room that strips need is that of brute_force.py; the time is that of the tensor engine, a
matmul of `n` columns taking n + STALL_CYCLES, or of DMA without its transfers. It shares no formula with the planner.
Strips and sub-strips of a call may all differ, in whole units. The two matmuls of one pair of factors take all blocks.
"""

from collections.abc import Iterable

from nxdi_svd_plugin.hardware import (
    CLOCK_HZ,
    DMA_BYTES_PER_SECOND,
    MOVING,
    PARTITIONS,
    STALL_CYCLES,
    tiles,
)
from nxdi_svd_plugin.kernels.tiling.brute_force import loads_of_x, longest_last, longest_summed, product_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import Operand, Plan, dense_hbm_bytes

Pairs = set[tuple[float, float]]


def front(chain: Chain, unit: int = PARTITIONS, overlap: bool = True) -> list[tuple[float, int]]:
    """(modelled seconds, HBM bytes) of which none has both less than another, for 16-bit factors.

    `unit`: tokens between the lengths of strips that are tried. `overlap`: see brute_force.py.
    """
    steps = -(-chain.tokens // unit)
    kept = _filled(chain, steps, unit, overlap)
    longest = longest_summed(chain, overlap)
    for length in range(1, steps + 1):
        if min(length * unit, chain.tokens) <= longest:
            kept.setdefault(length, set()).add((1, -(-min(length * unit, chain.tokens) // MOVING)))
    covers: list[Pairs] = [{(0, 0)}]
    for covered in range(1, steps + 1):
        options = {
            (moved + chain.v_bytes + reads * chain.u_bytes, passes + made)
            for length in range(1, covered + 1)
            for reads, made in kept.get(length, ())
            for moved, passes in covers[covered - length]
        }
        covers.append(_least(options))
    found = {(_strip_seconds(chain, int(passes)), chain.activation_bytes + moved) for moved, passes in covers[steps]}
    timed = {(max(seconds, moved / DMA_BYTES_PER_SECOND), moved) for seconds, moved in found | _matmuls(chain)}
    return [(seconds, int(moved)) for seconds, moved in sorted(_least(timed))]


def _least(pairs: Iterable[tuple[float, float]]) -> Pairs:
    """Those of which none has both at most as large as another's."""
    found: Pairs = set()
    most = float("inf")
    for first, second in sorted(pairs):
        if second < most:
            most = second
            found.add((first, second))
    return found


def _filled(chain: Chain, steps: int, unit: int, overlap: bool) -> dict[int, Pairs]:
    """{strip length: (sub-strips, pieces of a matmul's columns)}, by trying every next sub-strip."""
    last = [longest_last(chain, min(length * unit, chain.tokens), overlap) for length in range(steps + 1)]
    found: dict[int, Pairs] = {0: {(0, 0)}}
    for total in range(1, steps + 1):
        end = min(total * unit, chain.tokens)
        options = {
            (reads + 1, pieces + -(-(end - done * unit) // MOVING))
            for done in range(total)
            if end - done * unit <= last[total]
            for reads, pieces in found.get(done, ())
        }
        if options:
            found[total] = _least(options)
    del found[0]
    return found


def _strip_seconds(chain: Chain, pieces: int) -> float:
    """Of the tensor engine, with `pieces` matmuls for every pair of tiles that tokens move past."""
    token_tiles = tiles(chain.tokens)
    moving = tiles(chain.u_rows) * chain.rank_tiles
    cycles = 0
    if chain.writes_transposed:
        made = zip(chain.ranks, chain.v_columns, strict=True)
        moving += sum(tiles(columns) * tiles(rank) for rank, columns in made)
    else:
        columns = chain.outputs + STALL_CYCLES * -(-chain.outputs // _v_columns(chain))
        cycles += token_tiles * chain.rank_tiles * columns
    cycles += moving * (chain.tokens + STALL_CYCLES * pieces)
    if not chain.transposed_input:
        cycles += tiles(chain.inputs) * (chain.tokens + STALL_CYCLES * token_tiles)
    return cycles / CLOCK_HZ["pe"]


def _v_columns(chain: Chain) -> int:
    """Columns of a matmul where V moves: as many packed tiles as it can have."""
    return MOVING // chain.column_tile * chain.column_tile


def _matmuls(chain: Chain) -> Pairs:
    """X·U to HBM and back, blocked in every way that leaves room for two loads."""
    rank = chain.ranks[0]
    if len(chain.ranks) > 1 or chain.inputs % PARTITIONS or rank % PARTITIONS:
        return set()  # nothing that the kernels do, see tiling/through.py
    loads = loads_of_x(chain, True)
    first = _blocked(chain, (rank, chain.u_rows, chain.tokens), MOVING, not chain.transposed_input, loads)
    pivots = chain.itemsize * chain.tokens * (chain.inputs - chain.u_rows)  # read once
    if chain.writes_transposed:
        second = _blocked(chain, (chain.outputs, rank, chain.tokens), MOVING, False, 2)
    else:
        second = _blocked(chain, (chain.tokens, rank, chain.outputs), _v_columns(chain), False, 2)
    return {(a + c, b + d + pivots) for a, b in first for c, d in second}


def _blocked(chain: Chain, shape: tuple[int, int, int], width: int, transposes: bool, loads: int) -> Pairs:
    rows, deep, columns = shape
    costs = set()
    for plan in product_blocks(chain, shape, loads):
        reads, widest = _moving(plan, rows, width)
        cycles = tiles(rows) * tiles(deep) * (columns + STALL_CYCLES * -(-columns // widest))
        if transposes:
            cycles += reads * tiles(deep) * (columns + STALL_CYCLES * tiles(columns))
        costs.add((cycles / CLOCK_HZ["pe"], float(dense_hbm_bytes(*shape, chain.itemsize, plan))))
    return _least(costs)


def _moving(plan: Plan, rows: int, width: int) -> tuple[int, int]:
    """(times that W is read, columns of a matmul at most)."""
    if isinstance(plan, Operand):
        return (-(-rows // plan.block), min(width, plan.stream)) if plan.keeps_x else (1, min(width, plan.block))
    return -(-rows // plan.rows), min(width, plan.columns)
