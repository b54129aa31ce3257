"""The streamed loads that are worth trying for a chain, and how much room the plans leave for them."""

from dataclasses import replace

from nxdi_svd_plugin.hardware import LONG_RUN, MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.blocks import Buffers, output_bytes, u_load_bytes, v_load_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain

IN_FLIGHT = 2
"""Loads of each streamed operand that the plan leaves room for: one in use, the next on its way."""
SHORTEST_RUN = 1024
"""Bytes of the shortest DMA run of an output block that is tried."""
SHORTEST_U_RUN = 768
"""The same of a U load, of which several wait."""
LARGEST_LOAD = 32 * 1024
"""Bytes per partition of the largest load of whole columns that is tried."""


def buffer_choices(chain: Chain) -> list[Buffers]:
    """The streamed loads worth trying, with DMA runs of at least 2 KiB (768 bytes for U) where the shape allows it."""
    return [
        replace(buffers, u_rows=u_rows, u_tiles=u_tiles, x_tiles=x_tiles)
        for u_rows, u_tiles in _u_choices(chain)
        for buffers in v_choices(chain)
        for x_tiles in sorted({min(chain.input_tiles, count) for count in (8, 16)})
    ]


def _u_choices(chain: Chain) -> list[tuple[int, int]]:
    """(input tiles, rank tiles) of one U load: several whole columns for few tokens, parts of a column for many."""
    rows_of_u = tiles(chain.u_rows)
    column = chain.itemsize * rows_of_u * PARTITIONS
    group = min(LARGEST_LOAD // column, MOVING // min(chain.tokens, MOVING), min(chain.ranks) // PARTITIONS)
    tile = chain.itemsize * PARTITIONS
    least, shortest = LONG_RUN // tile, SHORTEST_U_RUN // tile
    parts = {*range(shortest, least + 1), *(-(-rows_of_u // split) for split in (1, 2, 3, 4, 7))}
    split = [(rows, 1) for rows in parts if min(shortest, rows_of_u) <= rows <= rows_of_u]
    return sorted({(rows_of_u, max(1, group)), *split})


def v_choices(chain: Chain) -> list[Buffers]:
    """The loads of V that are worth trying; those of U and X are of one tile."""
    together = [Buffers(1, 1, v_tiles, 1, side=side) for v_tiles in _v_tiles(chain) for side in _sides(chain, v_tiles)]
    return [*together, Buffers(1, 1, 1, 1, apart=True)] if chain.kind.swiglu else together


def _sides(chain: Chain, v_tiles: int) -> list[int]:
    """Packed column tiles that are one matmul's columns, where V moves: so many that output blocks have no rest."""
    most = 1 if chain.writes_transposed else MOVING // chain.column_tile
    return [side for side in range(1, most + 1) if v_tiles % side == 0]


def _v_tiles(chain: Chain) -> list[int]:
    """Packed column tiles of one V load (stationary V) or of one output block (moving V)."""
    width = chain.column_tile
    if chain.writes_transposed:
        load = chain.itemsize * chain.rank_tiles * width
        together = min(LARGEST_LOAD // load, MOVING // min(chain.tokens, MOVING), chain.outputs // PARTITIONS)
        return sorted({1, max(1, together)})
    columns = -(-chain.outputs // width)
    runs = (SHORTEST_RUN, LONG_RUN, 2 * LONG_RUN)
    return sorted({min(columns, -(-run // (chain.itemsize * width))) for run in runs})


def has_long_runs(chain: Chain, buffers: Buffers) -> bool:
    """Whether no U load is cut into runs below LONG_RUN."""
    return buffers.u_rows * PARTITIONS * chain.itemsize >= LONG_RUN or buffers.u_rows == tiles(chain.u_rows)


def load_bytes(chain: Chain, buffers: Buffers) -> int:
    """Bytes per partition that are streamed at a time: U, V, an output block, and X."""
    block = output_bytes(chain, buffers, (PARTITIONS,))
    return u_load_bytes(chain, buffers) + v_load_bytes(chain, buffers) + block + buffers.x_tiles * PARTITIONS
