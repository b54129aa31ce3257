"""`up_gate` with the (X·U)ᵀ of both factors in HBM: a matmul makes each, strips of tokens take them back for V.

A strip then holds (X·U)ᵀ alone, not the Xᵀ and the sums that it is made of, and is longer: less traffic where the ranks
are so large that V is read several times. X is read, and transposed, at least once for each factor.
"""

from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.hardware import SBUF_BUDGET
from nxdi_svd_plugin.kernels.tiling.blocks import (
    Blocks,
    Buffers,
    constant_bytes,
    expansion_bytes,
    holds_banks,
)
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT, v_choices
from nxdi_svd_plugin.kernels.tiling.strips import FINE
from nxdi_svd_plugin.kernels.tiling.through import first_products, has_whole_tiles


@lru_cache(maxsize=4096)
def refill_plans(chain: Chain) -> tuple[Blocks, ...]:
    """The fewest strips for every size of V loads, with the matmuls in order from least traffic to least time.

    () for no such form: only `up_gate` of one group has one, with inputs and ranks of whole tiles.
    """
    if not chain.kind.swiglu or not has_whole_tiles(chain):
        return ()
    found = [first_products(chain, rank) for rank in chain.ranks]
    if not all(found):
        return ()
    pairs = [tuple(each[min(n, len(each) - 1)] for each in found) for n in range(max(map(len, found)))]
    strips = [plan for buffers in v_choices(chain) if (plan := _fewest_strips(chain, buffers)) is not None]
    return tuple(replace(plan, firsts=firsts) for plan in strips for firsts in pairs)


def _fewest_strips(chain: Chain, buffers: Buffers) -> Blocks | None:
    """Equal strips but for the last; tiles share a PSUM bank only where all tokens are one strip."""
    for count in range(1, -(-chain.tokens // FINE) + 1 if buffers.v_tiles == 1 else 2):
        size = min(chain.tokens, -(-chain.tokens // (count * FINE)) * FINE)
        whole, rest = divmod(chain.tokens, size)
        used = constant_bytes(chain) + expansion_bytes(chain, buffers, (size,), IN_FLIGHT)
        if used <= SBUF_BUDGET and holds_banks(buffers, size):
            return Blocks(((whole, (size,)), *([(1, (rest,))] if rest else [])), buffers)
    return None
