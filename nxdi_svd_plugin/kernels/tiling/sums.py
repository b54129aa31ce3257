"""Strips with fp32 sums of (X·U)ᵀ in SBUF: the contraction is split, X is read once, U and V once per strip."""

from dataclasses import replace

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Buffers, longest_run, sum_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loads import v_choices
from nxdi_svd_plugin.kernels.tiling.strips import FINE, blocks_fit

SPLITS = (3, 4, 6, 8, 12, 16)
"""Input tiles of one block of a split contraction that are tried. With less than 3 the vector engine, which adds a
block's products to the sums at 1.12 GHz, would take longer than the tensor engine, which makes them at 2.8 GHz."""

SMALL_SPLIT = 2
"""What is tried where nothing else is as good as separate matmuls: the vector engine bounds that part of the call."""


def sum_plans(chain: Chain, splits: tuple[int, ...] = SPLITS) -> list[Blocks]:
    """Plans with fp32 sums of (X·U)ᵀ in SBUF, as few strips as fit: X once, U and V once per strip.

    Equal strips but for the last, or strips of whole matmuls: one of less than MOVING tokens stalls as long.
    """
    if not may_split(chain):
        return []
    splits = tuple(split for split in splits if split <= longest_run(chain) and sum_blocks(chain, split) > 1)
    choices = [
        replace(buffers, u_rows=split, x_tiles=split, split=split, in_psum=in_psum)
        for split in splits
        for buffers in v_choices(chain)
        for in_psum in (False, True)
    ]
    units = (FINE if chain.writes_transposed else PARTITIONS, MOVING)
    plans = [_fewest_strips(chain, buffers, unit) for buffers in choices for unit in units]
    return [plan for plan in plans if plan is not None]


def may_split(chain: Chain) -> bool:
    """Whether the kernel can split this contraction: that of one group.

    `down` reads Hᵀ by tiles then, and the pivots of `up_gate` are tiles of a (X·U)ᵀ in one piece.
    """
    if chain.groups > 1:
        return False
    return chain.inputs % PARTITIONS == 0 if chain.kind.reads_intermediate else not any(chain.pivots)


def _fewest_strips(chain: Chain, buffers: Buffers, unit: int) -> Blocks | None:
    for count in range(1, -(-chain.tokens // unit) + 1):
        size = min(chain.tokens, -(-chain.tokens // (count * unit)) * unit)
        whole, rest = divmod(chain.tokens, size)
        blocks = Blocks(((whole, (size,)), *([(1, (rest,))] if rest else [])), buffers)
        if blocks_fit(chain, blocks):
            return blocks
    return None
