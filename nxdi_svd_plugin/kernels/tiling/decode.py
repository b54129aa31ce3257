"""The plan of `mlp`, the MLP of a few tokens in one kernel: every weight is read once, nothing else but X and Y moves.

Everything between X and Y stays in SBUF, so there is nothing to search: only how much of a weight one load brings. A
load of LOAD_BYTES per partition runs at full DMA speed (aws-neuron-sdk v2.31.1, nki/deep-dives/
nki-dma-bandwidth-guide.rst); more would keep the tensor engine waiting for the first and busy after the last.
"""

from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BUDGET, tiles
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Buffers
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, schedule
from nxdi_svd_plugin.kernels.tiling.segments import OutputTiles, output_tiles, segments
from nxdi_svd_plugin.stored.runs import Runs

TOKENS = 128
"""Tokens of one call, at most: the rows of Y are the columns of a stationary operand."""
LOAD_BYTES = 4 * 1024
"""Bytes per partition of a weight load, at least, and less than twice as many, where the shapes allow."""
IN_FLIGHT = 2
"""Loads of each weight that have room at the same time."""


@dataclass(frozen=True)
class MlpPlan:
    """One call, for each of `groups` slices of the intermediate neurons.

    up, down: the loads of the U's (`u_load`, `u_tiles`) and of V_gate and V_up (`v_tiles`).
    v_load: rank tiles of one load of V_down.
    outputs: the slice's neurons, cut where pivots of gate, up or down begin or end.
    """

    groups: int
    up: Schedule
    down: Schedule
    v_load: int
    outputs: tuple[OutputTiles, ...]


def mlp_chains(
    tokens: int,
    hidden: int,
    width: int,
    ranks: tuple[int, ...],
    itemsize: int = 2,
    pivots: tuple[Runs, ...] = ((), (), ()),
) -> tuple[Chain, Chain]:
    """The two halves of an MLP of `width` neurons: ranks and pivots of gate, up and down."""
    first, last = (runs if any(runs) else () for runs in (pivots[:2], pivots[2:]))
    up = Chain("up_gate", tokens, hidden, ranks[:2], width, itemsize, pivots=first)
    return up, Chain("down", tokens, width, ranks[2:], hidden, itemsize, pivots=last)


def fits(up: Chain, down: Chain, groups: int = 1) -> bool:
    """Whether `mlp` takes `groups` MLPs of these halves: few tokens, and room in SBUF."""
    return up.tokens <= TOKENS and reserved_bytes(up, down, groups) <= SBUF_BUDGET


def mlp_plan(up: Chain, down: Chain, groups: int = 1) -> MlpPlan:
    """The plan of the halves of one group.

    Raises:
        KernelError: too many tokens, or they and the loads do not fit into SBUF.
    """
    if up.tokens > TOKENS:
        raise KernelError(f"mlp: {up.tokens} tokens, at most {TOKENS} go in one call; use up_gate and down")
    if not fits(up, down, groups):
        raise KernelError(
            f"mlp: {up.tokens} tokens and the loads take {reserved_bytes(up, down, groups)} bytes of SBUF per "
            f"partition of {SBUF_BUDGET}; use up_gate and down"
        )
    first, last = schedule(up, blocks_of(up)), schedule(down, blocks_of(down))
    runs = (*(up.pivots or ((), ())), *(down.pivots or ((),)))
    parts = tuple(segments(tiles(up.outputs), runs))
    return MlpPlan(groups, first, last, v_down_load(down), output_tiles(parts, up.outputs, first.v_tiles))


def v_down_load(down: Chain) -> int:
    """Rank tiles of one load of V_down: parts of a packed column tile."""
    return _share(tiles(down.ranks[0]), down.itemsize * down.column_tile)


def blocks_of(chain: Chain) -> Blocks:
    """One strip; loads of whole columns of U, several if they are short, or parts of one column if it is long."""
    depth = tiles(chain.u_rows)
    bank = MOVING // chain.tokens
    rows = _share(depth, chain.itemsize * PARTITIONS)
    u_tiles = _together(chain.itemsize * PARTITIONS * depth, bank) if rows == depth else 1
    shortest = chain.itemsize * PARTITIONS * min(map(tiles, chain.ranks))
    return Blocks(((1, (chain.tokens,)),), Buffers(rows, u_tiles, _together(shortest, bank), tiles(chain.inputs)))


def _share(count: int, size: int) -> int:
    """How many of `count` pieces of `size` bytes are one load: parts of at least LOAD_BYTES, the last one too."""
    for loads in reversed(range(2, count * size // LOAD_BYTES + 1)):
        share = -(-count // loads)
        if (count % share or share) * size >= LOAD_BYTES:
            return share
    return count


def _together(size: int, limit: int) -> int:
    """How many columns of `size` bytes make a load, at most `limit`: their sums share a PSUM bank."""
    return max(1, min(limit, -(-LOAD_BYTES // size)))


def load_bytes(up: Chain, down: Chain) -> tuple[int, int, int, int]:
    """Bytes per partition of the largest load of U_gate or U_up, of V_gate and V_up together, of U_down, of V_down."""
    first, last = blocks_of(up).buffers, blocks_of(down).buffers
    tile = up.itemsize * PARTITIONS
    return (
        tile * first.u_rows * first.u_tiles,
        tile * up.rank_tiles * first.v_tiles,
        tile * last.u_rows * last.u_tiles,
        up.itemsize * down.column_tile * v_down_load(down),
    )


def reserved_bytes(up: Chain, down: Chain, groups: int = 1, in_flight: int = IN_FLIGHT) -> int:
    """SBUF bytes per partition if all tensors were alive at once, with `in_flight` loads of each of the six weights."""
    u_up, v_up, u_down, v_down = load_bytes(up, down)
    strips = up.input_tiles + up.rank_tiles + tiles(up.outputs) + groups * tiles(down.ranks[0])
    rows = 2 * up.itemsize * up.inputs  # of X and of Y
    constants = 4 * MOVING + (4 * PARTITIONS if up.needs_identity else 0) + 4
    loads = in_flight * (2 * u_up + v_up + u_down + v_down)
    return up.itemsize * up.tokens * strips + rows + constants + loads


def mlp_bytes(up: Chain, down: Chain, groups: int = 1) -> tuple[int, int]:
    """HBM bytes (read, written) of one call, exactly as the simulator counts them."""
    written = up.itemsize * up.tokens * up.inputs
    constant = up.itemsize * PARTITIONS * PARTITIONS if up.needs_identity else 0
    return groups * (up.u_bytes + up.v_bytes + down.u_bytes + down.v_bytes) + written + constant, written
