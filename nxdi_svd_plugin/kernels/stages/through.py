"""X·U·V with (X·U)ᵀ in HBM between two matmuls, or between one for each factor and the strips that read V."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nl
from nxdi_svd_plugin.kernels.stages.gemm import load_part, multiply
from nxdi_svd_plugin.kernels.tiling.loops import Loops

Tensor = Any


def through_hbm(out: Tensor, x: Tensor, u: Tensor, v: Tensor, plan: tuple[Loops, ...], identity: Tensor | None) -> None:
    """out = X·U·V, or its transpose: where V is the stationary operand, T = (X·U)ᵀ is the moving one."""
    t = product_in_hbm(x, u, plan[0], identity)
    if plan[1].product.x == "packed":
        multiply(out, v, t, plan[1], None)
    else:
        multiply(out, t, v, plan[1], None)


def product_in_hbm(x: Tensor, u: Tensor, plan: Loops, identity: Tensor | None) -> Tensor:
    """(X·U)ᵀ [R, S] in HBM."""
    t = nl.ndarray((plan.product.rows, plan.product.columns), dtype=x.dtype, buffer=nl.hbm)
    multiply(t, u, x, plan, identity)
    return t


def load_strip(t: Tensor, first: Any, tokens: int) -> Tensor:
    """Columns `first`... of t [R, S], `tokens` of them, as [128, tiles·tokens] in SBUF."""
    rank = t.shape[0]
    strip = nl.ndarray((PARTITIONS, tiles(rank) * tokens), dtype=t.dtype, buffer=nl.sbuf)
    load_part(strip, t, 0, rank, first, tokens)
    return strip
