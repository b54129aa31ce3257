"""How a chain is cut into blocks, and what those blocks cost in HBM traffic and SBUF.

A *strip* of tokens holds (X·U)ᵀ in SBUF while V is streamed once; it is filled by one or more *sub-strips*, each of
which holds its part of Xᵀ while U is streamed once. So U is read once per sub-strip and V once per strip.
"""

from dataclasses import dataclass

from nxdi_svd_plugin.hardware import LONG_RUN, MOVING, PARTITIONS, PSUM_BANKS, tiles
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loops import Loops
from nxdi_svd_plugin.kernels.tiling.pieces import Piece, held_tokens, row_tokens, spans
from nxdi_svd_plugin.kernels.tiling.segments import Segment
from nxdi_svd_plugin.kernels.tiling.through import (
    Through,
    first_read_bytes,
    first_sbuf_bytes,
    through_hbm_bytes,
    through_sbuf_bytes,
)

HELD_BANKS = PSUM_BANKS // 2
"""PSUM banks that may be held while others are filled and emptied."""
SUM_PART = 2
"""Rank tiles of one tensor of (X·U)ᵀ, and of its sums, where the contraction is split: the sums of one part die as its
(X·U)ᵀ is made, so both exist together for one part only."""


@dataclass(frozen=True)
class Buffers:
    """Sizes of what is streamed past the strips.

    `u_rows` input tiles of `u_tiles` rank tiles make one U load (`u_tiles` > 1 only with whole columns); `v_tiles`
    packed column tiles make one V load and one output block; `x_tiles` input tiles of X rows are loaded at a time.
    """

    u_rows: int
    u_tiles: int
    v_tiles: int
    x_tiles: int
    split: int = 0
    """Input tiles of one block of a split contraction, with fp32 sums of (X·U)ᵀ in SBUF; 0: all of Xᵀ is kept."""
    side: int = 1
    """Packed column tiles of one V load that are one moving operand, where V is that."""
    in_psum: bool = False
    """Whether the sums of the last rank tile stay in PSUM over all blocks of a split contraction."""
    apart: bool = False
    """Whether `up_gate` makes gate's product for all tokens of a strip before up's, from loads of one V at a time."""


@dataclass(frozen=True)
class Blocks:
    """`groups` of (how many, sub-strip token counts): equal strips in a row share one group, and one device loop.

    `firsts`: the matmuls that make the (X·U)ᵀ of each factor in HBM, from which strips of one sub-strip take it back
    (tiling/refill.py); none where the strips make it themselves.
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    buffers: Buffers
    firsts: tuple[Loops, ...] = ()

    @property
    def strips(self) -> list[tuple[int, ...]]:
        """All strips in order."""
        return [strip for count, strip in self.groups for _ in range(count)]

    @property
    def tokens(self) -> int:
        """Tokens covered."""
        return sum(count * sum(strip) for count, strip in self.groups)


Plan = Blocks | Through
"""How a chain is computed: in strips, with (X·U)ᵀ in SBUF, or as two matmuls."""


def hbm_bytes(chain: Chain, blocks: Plan) -> tuple[int, int]:
    """HBM bytes (read, written) of the kernel with this plan, exactly as the simulator counts them."""
    if isinstance(blocks, Through):
        return through_hbm_bytes(chain, blocks)
    written = chain.turns * chain.itemsize * chain.tokens * chain.outputs
    if blocks.firsts:
        return _refilled_hbm_bytes(chain, blocks, written)
    u_reads = sum(len(strip) for strip in blocks.strips)
    read = chain.activation_bytes - written + u_reads * chain.u_bytes + len(blocks.strips) * chain.v_bytes
    return read, written


def _refilled_hbm_bytes(chain: Chain, blocks: Blocks, output: int) -> tuple[int, int]:
    made = chain.itemsize * chain.tokens * sum(chain.ranks)
    identity = PARTITIONS * PARTITIONS * chain.itemsize if chain.needs_identity else 0
    read = sum(first_read_bytes(chain, first) for first in blocks.firsts)
    return read + identity + made + len(blocks.strips) * chain.v_bytes, made + output


def sum_blocks(chain: Chain, split: int) -> int:
    """Blocks of a split contraction: `split` input tiles each; a run of pivots of `down` ends one early."""
    if not chain.kind.reads_intermediate:
        return -(-chain.input_tiles // split)
    return sum(-(-(part.stop - part.start) // split) for part in chain.segments if part.pivots[0] is None)


def longest_run(chain: Chain) -> int:
    """Input tiles of the longest run that is not cut by pivots."""
    if not chain.kind.reads_intermediate:
        return chain.input_tiles
    return max(part.stop - part.start for part in chain.segments if part.pivots[0] is None)


def last_sum_block(chain: Chain, split: int) -> int:
    """Input tiles of the last block."""
    runs = [part.stop - part.start for part in chain.segments if part.pivots[0] is None]
    extent = runs[-1] if chain.kind.reads_intermediate else chain.input_tiles
    return extent % split or split


def u_load_bytes(chain: Chain, buffers: Buffers) -> int:
    """SBUF bytes per partition of the largest U load (pivots of `down` and the rest of its rank share none)."""
    own = chain.pivot_tiles[0] if chain.kind.reads_intermediate else 0
    columns = max(1, min(buffers.u_tiles, max(own, max(chain.ranks) // PARTITIONS - own)))
    return chain.itemsize * buffers.u_rows * columns * min(PARTITIONS, max(chain.ranks))


def v_load_bytes(chain: Chain, buffers: Buffers) -> int:
    """SBUF bytes per partition of the largest V load (of both chains for `up_gate`)."""
    if chain.writes_transposed:
        return max(_segment_load_bytes(chain, buffers, segment) for segment in chain.segments)
    return chain.itemsize * chain.rank_tiles * min(buffers.side * chain.column_tile, chain.outputs)


def _segment_load_bytes(chain: Chain, buffers: Buffers, segment: Segment) -> int:
    """The V load of a segment of up_gate's outputs: no V for a factor whose pivots it is."""
    columns = min(PARTITIONS * min(buffers.v_tiles, segment.stop - segment.start), chain.outputs)
    deep = [tiles(rank) for rank, pivot in zip(chain.ranks, segment.pivots, strict=True) if pivot is None]
    return chain.itemsize * columns * (max(deep, default=0) if buffers.apart else sum(deep))


def output_bytes(chain: Chain, buffers: Buffers, strip: tuple[int, ...]) -> int:
    """SBUF bytes per partition of one output block of a strip, with SwiGLU's fp32 tile for `up_gate`."""
    width = chain.column_tile
    if not chain.writes_transposed:
        return chain.itemsize * tiles(sum(strip)) * min(width * buffers.v_tiles, chain.outputs)
    return max(_segment_output_bytes(chain, buffers, strip, segment) for segment in chain.segments)


def _segment_output_bytes(chain: Chain, buffers: Buffers, strip: tuple[int, ...], segment: Segment) -> int:
    group = min(buffers.v_tiles, segment.stop - segment.start)
    rows = stored_rows(chain, buffers, strip)
    longest = max(piece.tokens for row in rows for piece in row)
    swiglu = 4 * group * longest if chain.kind.swiglu else 0
    return chain.itemsize * group * max(map(row_tokens, rows)) + swiglu


def expansion_bytes(chain: Chain, buffers: Buffers, strip: tuple[int, ...], in_flight: int) -> int:
    """SBUF bytes per partition of the second phase: (X·U)ᵀ, V loads and the output block.

    V and the block do not overlap where one V load makes one output tile: its sums wait in PSUM while V dies. Nor does
    (X·U)ᵀ with the block if that is the only tile.
    """
    t_strip = chain.itemsize * chain.rank_tiles * sum(strip)
    width = chain.column_tile
    if chain.writes_transposed:
        single = len(strip) == 1 and strip[0] <= MOVING // buffers.v_tiles
        streams = [
            (_segment_load_bytes(chain, buffers, segment), _segment_output_bytes(chain, buffers, strip, segment))
            for segment in chain.segments
        ]
    else:
        single = sum(strip) < PARTITIONS and chain.outputs < width
        streams = [(v_load_bytes(chain, buffers), output_bytes(chain, buffers, strip))]
    if not single or in_flight > 1:
        return t_strip + max(in_flight * load + block for load, block in streams)
    if chain.outputs < width:
        return max(max(t_strip + load, block) for load, block in streams)
    return t_strip + max(max(load, block) for load, block in streams)


def kept_input_bytes(chain: Chain, tokens: int) -> int:
    """SBUF bytes per partition of Xᵀ that stays while the groups of `up_gate` take their turns."""
    return chain.itemsize * chain.input_tiles * tokens if chain.turns > 1 else 0


def holds_banks(buffers: Buffers, tokens: int) -> bool:
    """Whether a strip of `tokens` has so few matmuls side by side that one of all its tokens may wait in PSUM."""
    return not (buffers.in_psum or buffers.apart) or tokens <= HELD_BANKS * MOVING


def stored_rows(chain: Chain, buffers: Buffers, strip: tuple[int, ...]) -> list[list[Piece]]:
    """How the tokens of a transposed output are stored: rows of pieces, one tensor of (X·U)ᵀ a sub-strip.

    A piece is what is summed in one PSUM tile. A row is stored at once: as many whole pieces as make DMA runs of about
    2 KiB, in rows of about the same length; `start` is the place of a piece in its row.
    """
    total, run, done = sum(strip), LONG_RUN // chain.itemsize, 0
    rows: list[list[Piece]] = [[] for _ in [0] * max(1, (2 * total + run) // (2 * run))]
    for holder, size in enumerate(strip):
        for offset, tokens in spans(size, MOVING // buffers.v_tiles):
            row = rows[(2 * done + tokens) * len(rows) // (2 * total)]  # by the middle of the piece
            row.append(Piece(holder, offset, row_tokens(row), tokens))
            done += tokens
    return [row for row in rows if row]


def constant_bytes(chain: Chain) -> int:
    """SBUF bytes per partition of what the strips share: fp32's identity, SiLU's zero bias."""
    return (4 * PARTITIONS if chain.needs_identity else 0) + (4 if chain.kind.swiglu else 0)


def strip_sbuf_bytes(
    chain: Chain, buffers: Buffers, strip: tuple[int, ...], in_flight: int = 1, last: bool = False
) -> int:
    """Peak SBUF bytes per partition of one strip with `in_flight` copies of what is streamed (Eq. 11, refined).

    Sub-strip k holds its Xᵀ, the (X·U)ᵀ of sub-strips 1..k and the U loads; the expansion holds the whole (X·U)ᵀ, the
    V loads and the output block. After the transposes of the `last` strip the identity matrix is dead.
    """
    if buffers.split:
        whole = _summing_bytes(chain, buffers, strip[0], in_flight)
        return constant_bytes(chain) + max(whole, expansion_bytes(chain, buffers, strip, in_flight))
    total, done, peak = sum(strip), 0, 0
    for position, size in enumerate(strip):
        dead = 4 * PARTITIONS if chain.needs_identity and last and position == len(strip) - 1 else 0
        held, new = held_tokens(done, total, chain.token_align), held_tokens(done + size, total, chain.token_align)
        t_strip = chain.itemsize * chain.rank_tiles * held
        loading = t_strip + _loading_bytes(chain, buffers, size, in_flight, dead)
        projecting = t_strip + _projecting_bytes(chain, buffers, size, new - held, in_flight)
        done += size
        peak = max(peak, loading, projecting - dead)
    expanding = kept_input_bytes(chain, total) + expansion_bytes(chain, buffers, strip, in_flight)
    return constant_bytes(chain) + max(peak, expanding - dead)


def _summing_bytes(chain: Chain, buffers: Buffers, tokens: int, in_flight: int) -> int:
    """fp32 sums of (X·U)ᵀ, blocks of Xᵀ, and the rows of X or the tile of U that go with them.

    The last block holds the sums and one part of (X·U)ᵀ in the input's type. No block of Xᵀ is on its way behind it.
    """
    s = chain.itemsize
    streams = s * buffers.split * (tokens + PARTITIONS)
    last = s * last_sum_block(chain, buffers.split) * (tokens + in_flight * PARTITIONS)
    whole = 4 * (chain.rank_tiles - buffers.in_psum) * tokens
    peak, sums, made = 0, whole, 0
    for rank in chain.ranks:
        for start in range(0, tiles(rank), SUM_PART):
            part = tokens * min(SUM_PART, tiles(rank) - start)
            made += s * part
            peak, sums = max(peak, sums + made), sums - 4 * part
    return max(peak + last, whole + in_flight * streams)


def _loading_bytes(chain: Chain, buffers: Buffers, size: int, in_flight: int, dead: int) -> int:
    """Xᵀ of a sub-strip and the rows of X that it is made of.

    If there is but one tile of them, they die first, and `dead` bytes of an identity matrix that is needed no more.
    """
    x_strip = chain.itemsize * chain.input_tiles * size
    if chain.transposed_input:
        return x_strip
    rows = in_flight * chain.itemsize * min(buffers.x_tiles * PARTITIONS, chain.inputs)
    return max(x_strip - dead, rows) if max(chain.inputs, size) < PARTITIONS else x_strip + rows


def _projecting_bytes(chain: Chain, buffers: Buffers, size: int, new: int, in_flight: int) -> int:
    """Xᵀ of a sub-strip, U loads and the `new` tokens of (X·U)ᵀ, which follow Xᵀ if they are less than a tile high."""
    x_strip, t_strip, peak = chain.itemsize * chain.input_tiles * size, 0, 0
    for rank in chain.ranks * chain.summed:
        own = chain.itemsize * tiles(rank) * new
        peak = max(peak, t_strip + (0 if rank < PARTITIONS else own) + x_strip)
        t_strip += own
    return max(peak + in_flight * u_load_bytes(chain, buffers), t_strip)


def sbuf_bytes(chain: Chain, blocks: Plan, in_flight: int = 1) -> int:
    """Peak SBUF bytes per partition over all strips, as the simulator finds it for `in_flight` = 1."""
    if isinstance(blocks, Through):
        return through_sbuf_bytes(chain, blocks, in_flight)
    if blocks.firsts:
        first = max(first_sbuf_bytes(chain, first, in_flight) for first in blocks.firsts)
        strips = max(expansion_bytes(chain, blocks.buffers, strip, in_flight) for strip in blocks.strips)
        return max(first + (4 if chain.kind.swiglu else 0), constant_bytes(chain) + strips)
    final = len(blocks.groups) - 1
    return max(
        strip_sbuf_bytes(chain, blocks.buffers, strip, in_flight, last=position == final and count == 1)
        for position, (count, strip) in enumerate(blocks.groups)
    )
