"""Chooses the blocks of a chain: little HBM traffic, full stationary tiles, two loads of every operand in flight."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import LONG_RUN, MOVING, PARTITIONS, SBUF_BUDGET, tiles
from nxdi_svd_plugin.kernels.tiling.blocks import (
    Blocks,
    Buffers,
    Plan,
    constant_bytes,
    hbm_bytes,
    kept_input_bytes,
    longest_run,
    output_bytes,
    sbuf_bytes,
    strip_sbuf_bytes,
    sum_blocks,
    u_load_bytes,
    v_load_bytes,
)
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import engine_seconds
from nxdi_svd_plugin.kernels.tiling.pieces import held_tokens
from nxdi_svd_plugin.kernels.tiling.through import Through, through

IN_FLIGHT = 2
"""Loads of each streamed operand that the plan leaves room for: one in use, the next on its way."""
MAX_SUB_STRIP = 2048
"""Tokens whose fp32 accumulators take half of PSUM, so that the next accumulation can start during the eviction."""
SHORTEST_RUN = 1024
"""Bytes of the shortest DMA run of a U load that is tried."""
LARGEST_LOAD = 32 * 1024
"""Bytes per partition of the largest load of whole columns that is tried."""
FINE = 8
"""Strips and sub-strips are multiples of this many tokens, the last one apart."""
SPLITS = (3, 4, 6, 8, 12, 16)
"""Input tiles of one block of a split contraction that are tried. With less than 3 the vector engine, which adds a
block's products to the sums at 1.12 GHz, would take longer than the tensor engine, which makes them at 2.8 GHz."""
SAVING = 1.01
"""How much slower than the fastest a plan may be that moves less, and how much more one may move that has long runs."""
SLOWER = 1.03
"""How much slower two matmuls may be that move less: what transposing X again costs the tensor engine."""
TIE = 1.003
"""Plans this near the best count as equal."""


def buffer_choices(chain: Chain) -> list[Buffers]:
    """The streamed-load sizes worth trying, with DMA runs of at least 2 KiB (1 KiB for U) where the shape allows it."""
    return [
        Buffers(u_rows, u_tiles, v_tiles, x_tiles)
        for u_rows, u_tiles in _u_choices(chain)
        for v_tiles in _v_choices(chain)
        for x_tiles in sorted({min(chain.input_tiles, count) for count in (8, 16)})
    ]


def _u_choices(chain: Chain) -> list[tuple[int, int]]:
    """(input tiles, rank tiles) of one U load: several whole columns for few tokens, parts of a column for many."""
    rows_of_u = tiles(chain.u_rows)
    column = chain.itemsize * rows_of_u * PARTITIONS
    group = min(LARGEST_LOAD // column, MOVING // min(chain.tokens, MOVING), min(chain.ranks) // PARTITIONS)
    tile = chain.itemsize * PARTITIONS
    least, shortest = LONG_RUN // tile, SHORTEST_RUN // tile
    parts = {*range(shortest, least + 1), *(-(-rows_of_u // split) for split in (1, 2, 3, 4, 7))}
    split = [(rows, 1) for rows in parts if min(shortest, rows_of_u) <= rows <= rows_of_u]
    return sorted({(rows_of_u, max(1, group)), *split})


def _v_choices(chain: Chain) -> list[int]:
    """Packed column tiles of one V load (stationary V) or of one output block (moving V)."""
    width = chain.column_tile
    if chain.writes_transposed:
        load = chain.itemsize * chain.rank_tiles * width
        together = min(LARGEST_LOAD // load, MOVING // min(chain.tokens, MOVING), chain.outputs // PARTITIONS)
        return sorted({1, max(1, together)})
    columns = -(-chain.outputs // width)
    runs = (SHORTEST_RUN, LONG_RUN, 2 * LONG_RUN)
    return sorted({min(columns, -(-run // (chain.itemsize * width))) for run in runs})


def largest_sub_strip(chain: Chain, buffers: Buffers, done: int, total: int, limit: int) -> int:
    """Most tokens that the next sub-strip can take after `done` of `total`, in the first phase, within `limit` bytes.

    A multiple of 16, or all that is left.
    """
    s, align = chain.itemsize, chain.token_align
    room = limit - constant_bytes(chain)
    rows = 0 if chain.transposed_input else IN_FLIGHT * s * min(buffers.x_tiles * PARTITIONS, chain.inputs)
    loading = room - rows - s * chain.rank_tiles * held_tokens(done, total, align)
    projecting = room - IN_FLIGHT * u_load_bytes(chain, buffers)
    ideal = (projecting - s * chain.rank_tiles * done) // (s * (chain.rank_tiles + chain.input_tiles))
    size = max(0, min(MAX_SUB_STRIP, total - done, ideal, loading // (s * chain.input_tiles)))
    while size > 0:
        size = size if size == total - done else size // FINE * FINE
        held = held_tokens(done + size, total, align)
        if s * (chain.rank_tiles * held + chain.input_tiles * size) <= projecting:
            break
        size -= 1
    return size


def expansion_fits(chain: Chain, buffers: Buffers, strip: tuple[int, ...]) -> bool:
    """True if the strip leaves room for the second phase."""
    streamed = IN_FLIGHT * v_load_bytes(chain, buffers) + output_bytes(chain, buffers, strip)
    held = chain.itemsize * chain.rank_tiles * sum(strip) + kept_input_bytes(chain, sum(strip))
    return constant_bytes(chain) + held + streamed <= SBUF_BUDGET


def fill(chain: Chain, buffers: Buffers, tokens: int, limit: int = SBUF_BUDGET) -> tuple[int, ...] | None:
    """The fewest sub-strips that make a strip of `tokens`: each as long as fits. None if they never reach it.

    Longest first is optimal: what is covered after k sub-strips grows with what was covered after k - 1.
    """
    sizes: list[int] = []
    left = tokens
    while left:
        size = largest_sub_strip(chain, buffers, tokens - left, tokens, limit)
        if size <= 0:
            return None
        sizes.append(size)
        left -= size
    return tuple(sizes)


def even(chain: Chain, buffers: Buffers, tokens: int) -> tuple[int, ...]:
    """As few sub-strips as `fill` finds: of equal size if that fits, else with the lowest peak."""
    best = fill(chain, buffers, tokens)
    if best is None:
        raise KernelError(f"no sub-strips of {tokens} tokens fit {chain}")
    for step in (PARTITIONS, FINE):
        size = -(-tokens // len(best) // step) * step
        equal = tuple(min(size, tokens - start) for start in range(0, tokens, size))
        if len(equal) == len(best) and strip_sbuf_bytes(chain, buffers, equal, IN_FLIGHT) <= SBUF_BUDGET:
            return equal
    low, high = 0, SBUF_BUDGET
    while high - low > 64:
        middle = (low + high) // 2
        trial = fill(chain, buffers, tokens, middle)
        if trial is not None and len(trial) == len(best):
            high, best = middle, trial
        else:
            low = middle
    return best


def _longest_strips(chain: Chain, buffers: Buffers, unit: int) -> dict[int, int]:
    """{sub-strips: longest strip in units that they can fill}, up to the length of the whole input.

    One sub-strip alone where the groups of `up_gate` take turns at its Xᵀ.
    """
    longest: dict[int, int] = {}
    for units in range(1, -(-chain.tokens // unit) + 1):
        tokens = min(units * unit, chain.tokens)
        sizes = fill(chain, buffers, tokens)
        if sizes is None or (chain.turns > 1 and len(sizes) > 1) or not expansion_fits(chain, buffers, sizes):
            break
        longest[len(sizes)] = units
    return longest


def _cheapest_cover(chain: Chain, longest: dict[int, int], unit: int) -> list[int]:
    """Strip lengths (in units, longest first) that cover all tokens with the least weight traffic."""
    goal = -(-chain.tokens // unit)
    cost, last = [0] * (goal + 1), [0] * (goal + 1)
    for units in range(1, goal + 1):
        options = {
            cost[max(0, units - length)] + chain.v_bytes + reads * chain.u_bytes: length
            for reads, length in longest.items()
        }
        cost[units] = min(options)
        last[units] = options[cost[units]]
    lengths = []
    while goal > 0:
        lengths.append(last[goal])
        goal -= lengths[-1]
    return sorted(lengths, reverse=True)


def _balanced(chain: Chain, lengths: list[int], unit: int) -> list[int]:
    """The lengths in tokens, shrunk alike until they just cover the input."""
    goal, whole = -(-chain.tokens // unit), sum(lengths)
    shrunk = [-(-length * goal // whole) * unit for length in lengths]
    sizes, left = [], chain.tokens
    for size in shrunk:
        sizes.append(min(size, left))
        left -= sizes[-1]
    return [size for size in sizes if size]


def _whole_tiles(chain: Chain, lengths: list[int], unit: int) -> list[int]:
    """The lengths in tokens, as many as the surplus allows cut to whole tiles of 128; the last takes the rest."""
    sizes = [length * unit for length in lengths]
    surplus = sum(sizes) - chain.tokens
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i] % PARTITIONS):
        cut = min(sizes[index] % PARTITIONS, surplus)
        sizes[index], surplus = sizes[index] - cut, surplus - cut
    sizes[-1] -= surplus
    return sizes


def _plans(chain: Chain, buffers: Buffers, unit: int) -> list[Blocks]:
    """The least weight traffic with these loads and strips of multiples of `unit` tokens, those that fit."""
    longest = _longest_strips(chain, buffers, unit)
    if not longest:
        return []
    lengths = _cheapest_cover(chain, longest, unit)
    covers = [_balanced(chain, lengths, unit)]
    if not chain.writes_transposed and len(lengths) > 1:
        covers.append(_whole_tiles(chain, lengths, unit))
    found = []
    for sizes in covers:
        groups = tuple((count, even(chain, buffers, size)) for size, count in Counter(sizes).items() if size > 0)
        found.append(Blocks(groups, buffers))
    return [blocks for blocks in found if _fits(chain, blocks)]


def _shares(chain: Chain, blocks: Blocks) -> bool:
    """Whether several rank or output tiles share a PSUM bank, side by side as in T: that needs all tokens at once."""
    return blocks.buffers.u_tiles > 1 or (chain.writes_transposed and blocks.buffers.v_tiles > 1)


def _split_plans(chain: Chain) -> list[Blocks]:
    """Plans with fp32 sums of (X·U)ᵀ in SBUF, as few equal strips as fit: X once, U and V once per strip."""
    if not _splits(chain):
        return []
    splits = [split for split in SPLITS if split <= longest_run(chain) and sum_blocks(chain, split) > 1]
    plans = [_fewest_strips(chain, split, v_tiles) for split in splits for v_tiles in _v_choices(chain)]
    return [plan for plan in plans if plan is not None]


def _splits(chain: Chain) -> bool:
    """Whether the kernel can split this contraction: that of one group.

    `down` reads Hᵀ by tiles then, and the pivots of `up_gate` are tiles of a (X·U)ᵀ in one piece.
    """
    if chain.groups > 1:
        return False
    return chain.inputs % PARTITIONS == 0 if chain.kind.reads_intermediate else not any(chain.pivots)


def _fewest_strips(chain: Chain, split: int, v_tiles: int) -> Blocks | None:
    buffers = Buffers(split, 1, v_tiles, split, split)
    unit = FINE if chain.writes_transposed else PARTITIONS
    for count in range(1, -(-chain.tokens // unit) + 1):
        size = min(chain.tokens, -(-chain.tokens // (count * unit)) * unit)
        whole, rest = divmod(chain.tokens, size)
        blocks = Blocks(((whole, (size,)), *([(1, (rest,))] if rest else [])), buffers)
        if _fits(chain, blocks):
            return blocks
    return None


def _fits(chain: Chain, blocks: Blocks) -> bool:
    fits = sbuf_bytes(chain, blocks, IN_FLIGHT) <= SBUF_BUDGET
    return fits and (blocks.strips == [(chain.tokens,)] or not _shares(chain, blocks))


@lru_cache(maxsize=4096)
def choose(chain: Chain) -> Plan:
    """The plan for `chain`: strips, or two matmuls where they are faster, or as fast and move less.

    The least modelled time (strips that end inside a stationary tile waste cycles), of equal ones the least HBM bytes,
    of equal ones again the largest streamed loads (long DMA runs, few instructions). Runs of U loads are shorter than
    2 KiB only where longer ones cost 1 %. Every plan leaves room for two loads of each streamed operand.
    Raises KernelError if not even a few tokens fit into SBUF_BUDGET.
    """
    steps = (FINE,) if chain.writes_transposed else (PARTITIONS, 64, 32, FINE)
    plans = [plan for buffers in buffer_choices(chain) for unit in steps for plan in _plans(chain, buffers, unit)]
    least = min((sum(hbm_bytes(chain, plan)) for plan in plans), default=None)
    plans += [plan for plan in _split_plans(chain) if least is None or sum(hbm_bytes(chain, plan)) < least]
    if not plans:
        raise KernelError(
            f"{chain.kernel}: inputs {chain.inputs}, rank(s) {chain.ranks} and outputs {chain.outputs} leave no room "
            f"for {min(chain.tokens, FINE)} tokens in {SBUF_BUDGET} bytes per partition; "
            "use a smaller rank or more tensor-parallel shards"
        )
    best = _largest_loads(chain, _long_runs(chain, _fastest(chain, plans)))
    matmuls = through(chain)
    return matmuls if matmuls is not None and _better(chain, matmuls, best) else best


def _better(chain: Chain, matmuls: Through, blocks: Blocks) -> bool:
    mine, theirs = (max(engine_seconds(chain, plan).values()) for plan in (matmuls, blocks))
    if sum(hbm_bytes(chain, matmuls)) < sum(hbm_bytes(chain, blocks)):
        return mine <= SLOWER * theirs
    return mine * SAVING < theirs


Scores = dict[Blocks, int]
"""{plan: HBM bytes}; the least is the best."""


def _fastest(chain: Chain, plans: list[Blocks]) -> Scores:
    """The plans within SAVING of the least modelled time."""
    seconds = {plan: max(engine_seconds(chain, plan).values()) for plan in plans}
    most = SAVING * min(seconds.values())
    return {plan: sum(hbm_bytes(chain, plan)) for plan in plans if seconds[plan] <= most}


def _long_runs(chain: Chain, scores: Scores) -> Scores:
    """The plans that cut no U load into runs below LONG_RUN, or all where these cost more than SAVING of the best."""
    enough = SAVING * min(scores.values())
    long = {plan: score for plan, score in scores.items() if _has_long_runs(chain, plan.buffers) and score <= enough}
    return long or scores


def _has_long_runs(chain: Chain, buffers: Buffers) -> bool:
    return buffers.u_rows * PARTITIONS * chain.itemsize >= LONG_RUN or buffers.u_rows == tiles(chain.u_rows)


def _largest_loads(chain: Chain, scores: Scores) -> Blocks:
    """Of the plans within TIE of the best, which count as equal, the one that streams most bytes at a time."""
    equal = TIE * min(scores.values())
    return max(
        (plan for plan, score in scores.items() if score <= equal), key=lambda plan: _load_bytes(chain, plan.buffers)
    )


def _load_bytes(chain: Chain, buffers: Buffers) -> int:
    block = output_bytes(chain, buffers, (PARTITIONS,))
    return u_load_bytes(chain, buffers) + v_load_bytes(chain, buffers) + block + buffers.x_tiles * PARTITIONS


def forced(chain: Chain, strip: tuple[int, ...], split: int = 0) -> Blocks:
    """Blocks with the sub-strips `strip` that the caller asks for, whether or not they fit SBUF.

    `split`: input tiles of one block of a split contraction, 0 for all of Xᵀ.
    """
    if not strip or min(strip) < 1:
        raise KernelError(f"strip {strip} must be a tuple of positive token counts, one for each sub-strip")
    if split and not (_splits(chain) and len(strip) == 1 and sum_blocks(chain, split) > 1):
        raise KernelError(f"{chain.kernel}: a contraction split by {split} tiles needs one sub-strip and two blocks")
    choices = [b for b in buffer_choices(chain) if b.u_tiles == 1 and (b.v_tiles == 1 or not chain.writes_transposed)]
    fitting = [b for b in choices if strip_sbuf_bytes(chain, b, strip, IN_FLIGHT) <= SBUF_BUDGET]
    buffers = max(fitting or choices, key=lambda b: (1 if fitting else -1) * _load_bytes(chain, b))
    buffers = replace(buffers, u_rows=split, x_tiles=split, split=split) if split else buffers
    count, left = divmod(chain.tokens, sum(strip))
    groups = [(count, strip)] if count else []
    if left:
        groups.append((1, _cut(strip, left)))
    return Blocks(tuple(groups), buffers)


def _cut(strip: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """The leading part of `strip` that holds `tokens`."""
    sizes = []
    for size in strip:
        sizes.append(min(size, tokens))
        tokens -= sizes[-1]
    return tuple(size for size in sizes if size)
