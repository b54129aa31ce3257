"""Several groups on one core, more than `mlp` takes tokens: one call for all of them, or a call for each.

One call of `up_gate` reads and transposes X once, of `down` adds in PSUM and writes Y once; but `up_gate` keeps Xᵀ
while the groups take turns, and `down` keeps (H·U)ᵀ of all of them, so that strips are shorter and weights may be read
more often.
"""

from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import DMA_BYTES_PER_SECOND
from nxdi_svd_plugin.kernels.tiling.blocks import hbm_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import modelled_seconds
from nxdi_svd_plugin.kernels.tiling.planner import choose

FASTER = 1.02
"""How much faster one call must be that moves more."""


def calls_of(chain: Chain, groups: int) -> int:
    """Calls of the kernel for `groups` groups of this chain: 1 or `groups`."""
    return 1 if _together(chain, groups) else groups


@lru_cache(maxsize=4096)
def _together(chain: Chain, groups: int) -> bool:
    """Whether one call takes `groups` groups of this chain: it is not slower (modelled) than a call for each and, for
    `down`, the passes that add their outputs up; where it moves more, it is faster by FASTER."""
    one = replace(chain, groups=groups)
    try:
        mine, moved = seconds(one), sum(hbm_bytes(one, choose(one)))
    except KernelError:
        return False
    theirs = groups * seconds(chain) + sum_bytes(chain, groups) / DMA_BYTES_PER_SECOND
    return mine <= theirs if moved <= apart_bytes(chain, groups) else FASTER * mine < theirs


def seconds(chain: Chain) -> float:
    """MODEL of one call."""
    return modelled_seconds(chain, choose(chain))


def sum_bytes(chain: Chain, groups: int) -> int:
    """HBM bytes of the passes that add the outputs of calls of `down`: two tensors in, one out."""
    return 3 * (groups - 1) * chain.itemsize * chain.tokens * chain.outputs if chain.kind.reads_intermediate else 0


def apart_bytes(chain: Chain, groups: int) -> int:
    """HBM bytes of a call for each group, and of adding up."""
    return groups * sum(hbm_bytes(chain, choose(chain))) + sum_bytes(chain, groups)
