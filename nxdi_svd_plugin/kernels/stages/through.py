"""X·U·V as two matmuls of one kernel, with (X·U)ᵀ in HBM between them."""

from typing import Any

from nxdi_svd_plugin.kernels.nki import nl
from nxdi_svd_plugin.kernels.stages.gemm import multiply
from nxdi_svd_plugin.kernels.tiling.through import Through

Tensor = Any


def through_hbm(out: Tensor, x: Tensor, u: Tensor, v: Tensor, plan: Through, identity: Tensor | None) -> None:
    """out = X·U·V, or its transpose: where V is the stationary operand, T = (X·U)ᵀ is the moving one."""
    t = nl.ndarray((plan.first.rows, plan.first.columns), dtype=x.dtype, buffer=nl.hbm)
    multiply(t, u, x, plan.first, identity)
    if plan.second.x == "packed":
        multiply(out, v, t, plan.second, None)
    else:
        multiply(out, t, v, plan.second, None)
