"""The least HBM traffic of any plan: an exhaustive search, the reference that the planner is held to.

It shares nothing with the planner or its cost of a strip, and asks for less room: a strip is feasible here if Xᵀ and
(X·U)ᵀ leave place for one 128 x 128 tile of U, and (X·U)ᵀ for one column tile of V and one tile of the output, with
nothing loaded ahead. Strips of a call may all differ, sub-strips of a strip may all differ. A strip with fp32 sums of
(X·U)ᵀ is feasible if they leave place for the smallest block of Xᵀ and a tile of U; up to 2048 tokens the sums of one
rank tile may be in half of PSUM. Of gate and up, up to as many tokens, one V at a time has a column tile there. Last,
there are the two matmuls that the kernel is compared with, where it has one factor pair; where it has two, the matmuls
of X·U and strips that hold (X·U)ᵀ with a column tile of V and a tile of the output. brute_front.py does the same for
time and bytes.
"""

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, PSUM_BANKS, SBUF_BUDGET, SBUF_BYTES, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import Operand, Plan, dense_hbm_bytes, outputs

RUN = 1024
"""Bytes per partition of a DMA run where stores are to overlap with compute."""
U_RUN = 768
"""The same of a load of U."""


HELD = PSUM_BANKS // 2 * MOVING
"""Tokens whose fp32 sums of one tile are half of PSUM."""
SUM_TILES = 3
"""Input tiles of the smallest block of a split contraction: with less the vector engine's additions would bound it."""


def least_hbm_bytes(chain: Chain, unit: int = 8, overlap: bool = False) -> int | None:
    """HBM bytes (read and written) of the best plan for `chain`; None if nothing fits."""
    plans = [_kept(chain, unit, overlap), _summed(chain, overlap), _unfused(chain, overlap), _refilled(chain, overlap)]
    return min((moved for moved in plans if moved is not None), default=None)


def _unfused(chain: Chain, overlap: bool) -> int | None:
    """Two matmuls, in the blocks that move least.

    Inputs that are pivots are no part of the first contraction, but are read once.
    """
    if len(chain.ranks) > 1 or chain.groups > 1 or chain.inputs % PARTITIONS or chain.ranks[0] % PARTITIONS:
        return None  # nothing that the kernels do, see tiling/through.py
    second = (chain.outputs, chain.tokens) if chain.writes_transposed else (chain.tokens, chain.outputs)
    calls = [(chain.ranks[0], chain.u_rows, chain.tokens), (second[0], chain.ranks[0], second[1])]
    moved = _least_product(chain, calls[0], loads_of_x(chain, overlap))
    moved += _least_product(chain, calls[1], 2 if overlap else 1)
    return moved + chain.itemsize * chain.tokens * (chain.inputs - chain.u_rows)


def loads_of_x(chain: Chain, overlap: bool) -> int:
    """Blocks of Xᵀ that have room beside each other: one if it is transposed, for which rows are loaded ahead."""
    return 2 if overlap and chain.transposed_input else 1


def _least_product(chain: Chain, shape: tuple[int, int, int], loads: int) -> int:
    plans = product_blocks(chain, shape, loads)
    return min((dense_hbm_bytes(*shape, chain.itemsize, plan) for plan in plans), default=SBUF_BYTES**3)


def product_blocks(chain: Chain, shape: tuple[int, int, int], loads: int) -> list[Plan]:
    """Blocks of a matmul [rows, deep, columns] that leave place for `loads` tiles of what is streamed past them.

    Beside an operand there is a tile of the output; beside sums, SUM_TILES of the contraction. Loads of w are as wide
    as fits, up to a matmul's columns.
    """
    rows, deep, columns = shape
    s, depth = chain.itemsize, tiles(deep)
    found: list[Plan] = []
    for block in range(PARTITIONS, max(rows, columns) + PARTITIONS, PARTITIONS):
        left = SBUF_BUDGET // s - depth * block - PARTITIONS
        if left >= loads * depth * PARTITIONS or left >= loads * depth * columns:
            widest = min(MOVING, columns, left // (loads * depth))
            found += [Operand(True, min(rows, block), widest), Operand(False, min(columns, block), PARTITIONS)]
    for plan in outputs(rows, columns, PARTITIONS, (SUM_TILES * PARTITIONS,)):
        streams = loads * s * min(depth, SUM_TILES) * min(plan.rows, plan.columns)
        if 4 * tiles(plan.rows) * plan.columns + streams <= SBUF_BUDGET:
            found.append(plan)
    return found


def _refilled(chain: Chain, overlap: bool) -> int | None:
    """Both (X·U)ᵀ of `up_gate` by matmuls, to HBM and back once; V once per strip, each as long as fits."""
    if len(chain.ranks) < 2 or chain.groups > 1 or any(size % PARTITIONS for size in (chain.inputs, *chain.ranks)):
        return None  # nothing that the kernels do, see tiling/refill.py
    s, moved = chain.itemsize, chain.itemsize * chain.tokens * chain.outputs
    for rank in chain.ranks:
        call = (rank, chain.inputs, chain.tokens)
        moved += _least_product(chain, call, loads_of_x(chain, overlap)) + s * rank * chain.tokens
    longest = chain.tokens
    while longest:
        streams = (_overlapping(chain, longest) if overlap else _single(chain, longest))[1]
        if s * chain.rank_tiles * longest + streams <= SBUF_BUDGET:
            return moved + -(-chain.tokens // longest) * chain.v_bytes
        longest -= 1
    return None


def _summed(chain: Chain, overlap: bool) -> int | None:
    """X once, U and V once per strip; all strips but the last are as long as fits."""
    longest = longest_summed(chain, overlap)
    if longest < 1:
        return None
    return chain.activation_bytes + -(-chain.tokens // longest) * (chain.u_bytes + chain.v_bytes)


def longest_summed(chain: Chain, overlap: bool) -> int:
    """Tokens of the longest strip with fp32 sums of (X·U)ᵀ in SBUF; 0 for none."""
    s, tile, loads = chain.itemsize, chain.itemsize * PARTITIONS, 2 if overlap else 1
    splits = chain.inputs % PARTITIONS == 0 if chain.kind.reads_intermediate else not any(chain.pivots)
    if chain.groups > 1 or not splits:
        return 0  # nothing that the kernels do, see tiling/sums.py
    fixed = loads * SUM_TILES * tile + (4 * PARTITIONS if chain.needs_identity else 0)
    in_sbuf, one_less = (
        (SBUF_BUDGET - fixed) // (4 * sums + loads * s * SUM_TILES) for sums in (chain.rank_tiles, chain.rank_tiles - 1)
    )
    longest = max(in_sbuf, min(one_less, HELD))
    return max(0, min(longest, (SBUF_BUDGET - (_depth(chain, longest) + 1) * tile) // (s * chain.rank_tiles)))


def _kept(chain: Chain, unit: int, overlap: bool) -> int | None:
    """Strips whose sub-strips keep Xᵀ.

    X is read and the output written once, U once per sub-strip, V once per strip. `unit`: tokens between the lengths
    that are tried. `overlap`: leave the room that DMA and eviction need to run beside the tensor engine: two loads of
    U, in DMA runs of 768 bytes, and of V in half of PSUM, and an output block in runs of 1 KiB.
    """
    unit = min(unit, chain.tokens)
    steps = -(-chain.tokens // unit)
    fewest = _fewest_sub_strips(chain, steps, unit, overlap)
    strips = {length: chain.v_bytes + reads * chain.u_bytes for length, reads in fewest.items()}
    best: list[float] = [0.0] + [float("inf")] * steps
    for covered in range(1, steps + 1):
        costs = (best[covered - length] + cost for length, cost in strips.items() if length <= covered)
        best[covered] = min(costs, default=best[covered])
    return None if best[steps] == float("inf") else chain.activation_bytes + int(best[steps])


def _fewest_sub_strips(chain: Chain, steps: int, unit: int, overlap: bool) -> dict[int, int]:
    """{strip length: fewest sub-strips that fill it}, lengths in steps, by trying every next sub-strip.

    One, with Xᵀ beside the second phase, where groups take turns at it.
    """
    last = [longest_last(chain, length * unit, overlap) for length in range(steps + 1)]
    if chain.turns > 1:
        lengths = (length for length in range(1, steps + 1) if last[length] >= length * unit)
        return {length: 1 for length in lengths if _turns_fit(chain, length * unit, overlap)}
    found = {0: 0}
    for done in range(steps):
        for size in range(1, steps - done + 1):
            if done not in found or size * unit > last[done + size]:
                break
            found[done + size] = min(found.get(done + size, steps), found[done] + 1)
    return {length: reads for length, reads in found.items() if length}


def _turns_fit(chain: Chain, tokens: int, overlap: bool) -> bool:
    streams = (_overlapping(chain, tokens) if overlap else _single(chain, tokens))[1]
    return chain.itemsize * (chain.rank_tiles + chain.input_tiles) * tokens + streams <= SBUF_BUDGET


def longest_last(chain: Chain, tokens: int, overlap: bool) -> int:
    """Tokens of the longest sub-strip that can end a strip of `tokens`: in SBUF, and its sums in PSUM; 0 for none."""
    held = chain.itemsize * chain.rank_tiles * tokens + (4 * PARTITIONS if chain.needs_identity else 0)
    first, second = _overlapping(chain, tokens) if overlap else _single(chain, tokens)
    if held + second > SBUF_BUDGET:
        return 0
    x_strip = max(0, SBUF_BUDGET - held - first) // (chain.itemsize * chain.input_tiles)
    return min(x_strip, MOVING * PSUM_BANKS // (2 if overlap else 1))


def _single(chain: Chain, tokens: int) -> tuple[int, int]:
    """SBUF bytes per partition beside the strips, by phase: a tile of U; a column of V and a tile of the output."""
    tile = chain.itemsize * PARTITIONS
    return tile, _depth(chain, tokens) * tile + tile


def _overlapping(chain: Chain, tokens: int) -> tuple[int, int]:
    """The same with two loads of U_RUN in flight, and output blocks of RUN."""
    width = chain.itemsize * min(chain.column_tile, chain.outputs)
    load = min(U_RUN, chain.itemsize * PARTITIONS * chain.input_tiles)
    if chain.writes_transposed:
        block = min(RUN, chain.itemsize * tokens) + (4 * min(MOVING, tokens) if chain.kind.swiglu else 0)
    else:
        block = tiles(tokens) * min(-(-RUN // width) * width, chain.itemsize * chain.outputs)
    return 2 * load, 2 * _depth(chain, tokens) * width + block


def _depth(chain: Chain, tokens: int) -> int:
    """Tiles of the deepest column of V: all sums of an output tile end together, so its whole column is held.

    Those of gate wait in half of PSUM for up's where that holds all tokens.
    """
    if not chain.writes_transposed:
        return chain.rank_tiles
    together = max if tokens <= HELD else sum
    factors = [zip(chain.ranks, segment.pivots, strict=True) for segment in chain.segments]
    return max(together([0, *(tiles(rank) for rank, pivot in each if pivot is None)]) for each in factors)
