"""The least HBM traffic of any plan: an exhaustive search, the reference that the planner is held to.

It shares nothing with the planner or its cost of a strip, and asks for less room: a strip is feasible here if Xᵀ and
(X·U)ᵀ leave place for one 128 x 128 tile of U, and (X·U)ᵀ for one column tile of V and one tile of the output, with
nothing loaded ahead. Strips of a call may all differ, sub-strips of a strip may all differ. A strip with fp32 sums of
(X·U)ᵀ is feasible if they leave place for the smallest block of Xᵀ and a tile of U. Last, there are the two matmuls
that the kernel is compared with, where it has one factor pair. brute_front.py does the same for time and bytes.
"""

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, PSUM_BANKS, SBUF_BUDGET, SBUF_BYTES, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.dense import choose_dense, dense_hbm_bytes

RUN = 1024
"""Bytes per partition of a DMA run where loads and stores are to overlap with compute."""


SUM_TILES = 3
"""Input tiles of the smallest block of a split contraction: with less the vector engine's additions would bound it."""


def least_hbm_bytes(chain: Chain, unit: int = 8, overlap: bool = False) -> int | None:
    """HBM bytes (read and written) of the best plan for `chain`; None if nothing fits."""
    plans = [_kept(chain, unit, overlap), _summed(chain, overlap), _unfused(chain)]
    return min((moved for moved in plans if moved is not None), default=None)


def _unfused(chain: Chain) -> int | None:
    """Two matmuls, blocked for least traffic within SBUF_BUDGET; tiling/dense.py tries all blocks."""
    if len(chain.ranks) > 1 or any(chain.pivots) or chain.inputs % PARTITIONS or chain.ranks[0] % PARTITIONS:
        return None  # nothing that the kernels do, see tiling/through.py
    second = (chain.outputs, chain.tokens) if chain.writes_transposed else (chain.tokens, chain.outputs)
    calls = [(chain.ranks[0], chain.inputs, chain.tokens), (second[0], chain.ranks[0], second[1])]
    s, reserve = chain.itemsize, SBUF_BYTES - SBUF_BUDGET
    return sum(dense_hbm_bytes(*call, s, choose_dense(*call, s, taken=reserve)) for call in calls)


def _summed(chain: Chain, overlap: bool) -> int | None:
    """X once, U and V once per strip; all strips but the last are as long as fits."""
    longest = longest_summed(chain, overlap)
    if longest < 1:
        return None
    return chain.activation_bytes + -(-chain.tokens // longest) * (chain.u_bytes + chain.v_bytes)


def longest_summed(chain: Chain, overlap: bool) -> int:
    """Tokens of the longest strip with fp32 sums of (X·U)ᵀ in SBUF; 0 for none."""
    s, tile, loads = chain.itemsize, chain.itemsize * PARTITIONS, 2 if overlap else 1
    if chain.inputs % PARTITIONS if chain.kind.reads_intermediate else any(chain.pivots):
        return 0  # nothing that the kernels do, see tiling/sums.py
    fixed = loads * SUM_TILES * tile + (4 * PARTITIONS if chain.needs_identity else 0)
    longest = (SBUF_BUDGET - fixed) // (4 * chain.rank_tiles + loads * s * SUM_TILES)
    return max(0, min(longest, (SBUF_BUDGET - (_depth(chain) + 1) * tile) // (s * chain.rank_tiles)))


def _kept(chain: Chain, unit: int, overlap: bool) -> int | None:
    """Strips whose sub-strips keep Xᵀ.

    X is read and the output written once, U once per sub-strip, V once per strip. `unit`: tokens between the lengths
    that are tried. `overlap`: leave the room that DMA and eviction need to run beside the tensor engine: two loads of U
    and of V in half of PSUM, in DMA runs of 1 KiB, and an output block in such runs.
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
    """{strip length: fewest sub-strips that fill it}, lengths in steps, by trying every next sub-strip."""
    last = [longest_last(chain, length * unit, overlap) for length in range(steps + 1)]
    found = {0: 0}
    for done in range(steps):
        for size in range(1, steps - done + 1):
            if done not in found or size * unit > last[done + size]:
                break
            found[done + size] = min(found.get(done + size, steps), found[done] + 1)
    return {length: reads for length, reads in found.items() if length}


def longest_last(chain: Chain, tokens: int, overlap: bool) -> int:
    """Tokens of the longest sub-strip that can end a strip of `tokens`: in SBUF, and its sums in PSUM; 0 for none."""
    held = chain.itemsize * chain.rank_tiles * tokens + (4 * PARTITIONS if chain.needs_identity else 0)
    first, second = _overlapping(chain, tokens) if overlap else _single(chain)
    if held + second > SBUF_BUDGET:
        return 0
    x_strip = max(0, SBUF_BUDGET - held - first) // (chain.itemsize * chain.input_tiles)
    return min(x_strip, MOVING * PSUM_BANKS // (2 if overlap else 1))


def _single(chain: Chain) -> tuple[int, int]:
    """SBUF bytes per partition beside the strips, by phase: a tile of U; a column of V and a tile of the output."""
    tile = chain.itemsize * PARTITIONS
    return tile, _depth(chain) * tile + tile


def _overlapping(chain: Chain, tokens: int) -> tuple[int, int]:
    """The same with two loads of 1 KiB runs in flight, and output blocks of such runs."""
    width = chain.itemsize * min(chain.column_tile, chain.outputs)
    load = min(RUN, chain.itemsize * PARTITIONS * chain.input_tiles)
    if chain.writes_transposed:
        block = min(RUN, chain.itemsize * tokens) + (4 * min(MOVING, tokens) if chain.kind.swiglu else 0)
    else:
        block = tiles(tokens) * min(-(-RUN // width) * width, chain.itemsize * chain.outputs)
    return 2 * load, 2 * _depth(chain) * width + block


def _depth(chain: Chain) -> int:
    """Tiles of the deepest column of V: all sums of an output tile end together, so its whole column is held."""
    if not chain.writes_transposed:
        return chain.rank_tiles
    factors = [zip(chain.ranks, segment.pivots, strict=True) for segment in chain.segments]
    return max(sum(tiles(rank) for rank, pivot in each if pivot is None) for each in factors)
