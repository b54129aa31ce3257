"""Strips that keep Xᵀ: the fewest sub-strips that fill one, and the strips that cover all tokens with least traffic."""

from collections import Counter

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BUDGET
from nxdi_svd_plugin.kernels.tiling.blocks import (
    Blocks,
    Buffers,
    constant_bytes,
    holds_banks,
    kept_input_bytes,
    output_bytes,
    sbuf_bytes,
    strip_sbuf_bytes,
    u_load_bytes,
    v_load_bytes,
)
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT
from nxdi_svd_plugin.kernels.tiling.pieces import held_tokens

MAX_SUB_STRIP = 2048
"""Tokens whose fp32 accumulators take half of PSUM, so that the next accumulation can start during the eviction."""
FINE = 8
"""Strips and sub-strips are multiples of this many tokens, or of MOVING so that matmuls are full; not the last one."""


def strip_plans(chain: Chain, buffers: Buffers, unit: int) -> list[Blocks]:
    """The least weight traffic with these loads and strips of multiples of `unit` tokens, those that fit."""
    longest = _longest_strips(chain, buffers, unit)
    if not longest:
        return []
    lengths = _cheapest_cover(chain, longest, unit)
    covers = [_balanced(chain, lengths, unit)]
    if len(lengths) > 1:
        steps = (MOVING,) if chain.writes_transposed else (PARTITIONS, MOVING)
        covers += [_whole(chain, lengths, unit, step) for step in steps]
    found = []
    for sizes in covers:
        groups = tuple(
            (count, even(chain, buffers, size, _sub_unit(unit))) for size, count in Counter(sizes).items() if size > 0
        )
        found.append(Blocks(groups, buffers))
    return [blocks for blocks in found if blocks_fit(chain, blocks)]


def _sub_unit(unit: int) -> int:
    """Sub-strips are whole tiles, or whole matmuls, where strips are."""
    return unit if unit >= PARTITIONS else FINE


def _shares(chain: Chain, blocks: Blocks) -> bool:
    """Whether several rank or output tiles share a PSUM bank, side by side as in T: that needs all tokens at once."""
    return blocks.buffers.u_tiles > 1 or (chain.writes_transposed and blocks.buffers.v_tiles > 1)


def largest_sub_strip(
    chain: Chain, buffers: Buffers, done: int, total: int, limit: int = SBUF_BUDGET, unit: int = FINE
) -> int:
    """Most tokens that the next sub-strip can take after `done` of `total`, in the first phase, within `limit` bytes.

    A multiple of `unit`, or all that is left.
    """
    s, align = chain.itemsize, chain.token_align
    room = limit - constant_bytes(chain)
    rows = 0 if chain.transposed_input else IN_FLIGHT * s * min(buffers.x_tiles * PARTITIONS, chain.inputs)
    loading = room - rows - s * chain.rank_tiles * held_tokens(done, total, align)
    projecting = room - IN_FLIGHT * u_load_bytes(chain, buffers)
    ideal = (projecting - s * chain.rank_tiles * done) // (s * (chain.rank_tiles + chain.input_tiles))
    size = max(0, min(MAX_SUB_STRIP, total - done, ideal, loading // (s * chain.input_tiles)))
    while size > 0:
        size = size if size == total - done else size // unit * unit
        held = held_tokens(done + size, total, align)
        if s * (chain.rank_tiles * held + chain.input_tiles * size) <= projecting:
            break
        size -= 1
    return size


def expansion_fits(chain: Chain, buffers: Buffers, strip: tuple[int, ...]) -> bool:
    """True if the strip leaves room for the second phase."""
    streamed = IN_FLIGHT * v_load_bytes(chain, buffers) + output_bytes(chain, buffers, strip)
    held = chain.itemsize * chain.rank_tiles * sum(strip) + kept_input_bytes(chain, sum(strip))
    return constant_bytes(chain) + held + streamed <= SBUF_BUDGET and holds_banks(buffers, sum(strip))


def fill(
    chain: Chain, buffers: Buffers, tokens: int, limit: int = SBUF_BUDGET, unit: int = FINE
) -> tuple[int, ...] | None:
    """The fewest sub-strips that make a strip of `tokens`: each as long as fits. None if they never reach it.

    Longest first is optimal: what is covered after k sub-strips grows with what was covered after k - 1.
    """
    sizes: list[int] = []
    left = tokens
    while left:
        size = largest_sub_strip(chain, buffers, tokens - left, tokens, limit, unit)
        if size <= 0:
            return None
        sizes.append(size)
        left -= size
    return tuple(sizes)


def even(chain: Chain, buffers: Buffers, tokens: int, unit: int = FINE) -> tuple[int, ...]:
    """As few sub-strips as `fill` finds: of equal size if that fits, else with the lowest peak."""
    best = fill(chain, buffers, tokens, unit=unit)
    if best is None:
        raise KernelError(f"no sub-strips of {tokens} tokens fit {chain}")
    for step in (PARTITIONS, FINE) if unit < PARTITIONS else (unit,):
        size = -(-tokens // len(best) // step) * step
        equal = tuple(min(size, tokens - start) for start in range(0, tokens, size))
        if len(equal) == len(best) and strip_sbuf_bytes(chain, buffers, equal, IN_FLIGHT) <= SBUF_BUDGET:
            return equal
    low, high = 0, SBUF_BUDGET
    while high - low > 64:
        middle = (low + high) // 2
        trial = fill(chain, buffers, tokens, middle, unit)
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
        sizes = fill(chain, buffers, tokens, unit=_sub_unit(unit))
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


def _whole(chain: Chain, lengths: list[int], unit: int, step: int) -> list[int]:
    """The lengths in tokens, as many as the surplus allows cut to multiples of `step`; the last takes the rest."""
    sizes = [length * unit for length in lengths]
    surplus = sum(sizes) - chain.tokens
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i] % step):
        cut = min(sizes[index] % step, surplus)
        sizes[index], surplus = sizes[index] - cut, surplus - cut
    sizes[-1] -= surplus
    return sizes


def blocks_fit(chain: Chain, blocks: Blocks) -> bool:
    """Whether they fit into SBUF_BUDGET, and into PSUM where tiles share a bank."""
    fits = sbuf_bytes(chain, blocks, IN_FLIGHT) <= SBUF_BUDGET
    fits = fits and all(holds_banks(blocks.buffers, sum(strip)) for _, strip in blocks.groups)
    return fits and (blocks.strips == [(chain.tokens,)] or not _shares(chain, blocks))
