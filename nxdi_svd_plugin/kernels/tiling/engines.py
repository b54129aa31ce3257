"""How long a plan keeps every engine busy: the simulator's model of time (docs/simulator.md) without a trace."""

from functools import lru_cache

from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.blocks import Plan
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.product_work import add_product
from nxdi_svd_plugin.kernels.tiling.schedule import schedule
from nxdi_svd_plugin.kernels.tiling.strip_work import add_strips
from nxdi_svd_plugin.kernels.tiling.through import Through
from nxdi_svd_plugin.kernels.tiling.work import Work


@lru_cache(maxsize=4096)
def work_of(chain: Chain, plan: Plan) -> Work:
    """What one call does; read it only."""
    work = Work(chain.itemsize)
    work.constants(chain.needs_identity, chain.kind.swiglu)
    if isinstance(plan, Through):
        add_product(work, plan.first)
        add_product(work, plan.second)
    else:
        for first in plan.firsts:
            add_product(work, first)
        add_strips(work, chain, schedule(chain, plan))
    return work


def engine_seconds(chain: Chain, plan: Plan) -> dict[str, float]:
    """MODEL: busy seconds of the tensor, vector and scalar engines, of PSUM and of DMA for one call."""
    return work_of(chain, plan).seconds


def modelled_seconds(chain: Chain, plan: Plan) -> float:
    """MODEL: the busiest of them, without hardware.OVERLAP: what plans are compared by."""
    return max(engine_seconds(chain, plan).values())


def matmul_cycles(chain: Chain, plan: Plan) -> int:
    """Tensor-engine cycles of the matmuls: max(min(64, stationary width), moving width) each, four passes for fp32."""
    return work_of(chain, plan).matmul_cycles


def transpose_cycles(chain: Chain, plan: Plan) -> int:
    """Tensor-engine cycles of the transposes of X: max(rows, min(64, columns)) for each tile, two passes for fp32."""
    return work_of(chain, plan).transpose_cycles


def minimum_pe_cycles(chain: Chain) -> float:
    """Tensor-engine cycles of the chain's FLOPs alone at full use of the 128 x 128 array."""
    return chain.flops / (2 * PARTITIONS * PARTITIONS) * (4 if chain.itemsize == 4 else 1)
