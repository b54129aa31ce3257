"""Strips with fp32 sums of (X·U)ᵀ in SBUF: the contraction is split, X is read once, U and V once per strip."""

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Buffers, longest_run, sum_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loads import v_choices
from nxdi_svd_plugin.kernels.tiling.strips import FINE, blocks_fit

SPLITS = (3, 4, 6, 8, 12, 16)
"""Input tiles of one block of a split contraction that are tried. With less than 3 the vector engine, which adds a
block's products to the sums at 1.12 GHz, would take longer than the tensor engine, which makes them at 2.8 GHz."""


def sum_plans(chain: Chain) -> list[Blocks]:
    """Plans with fp32 sums of (X·U)ᵀ in SBUF, as few equal strips as fit: X once, U and V once per strip."""
    if not may_split(chain):
        return []
    splits = [split for split in SPLITS if split <= longest_run(chain) and sum_blocks(chain, split) > 1]
    plans = [_fewest_strips(chain, split, v_tiles) for split in splits for v_tiles in v_choices(chain)]
    return [plan for plan in plans if plan is not None]


def may_split(chain: Chain) -> bool:
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
        if blocks_fit(chain, blocks):
            return blocks
    return None
