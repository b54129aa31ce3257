"""The first stage of every fused kernel as a kernel of its own, for the ladder: T = (X·U)ᵀ, written out."""

from functools import lru_cache
from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.load import fp32_identity, load_rows_transposed
from nxdi_svd_plugin.kernels.stages.project import project as project_stage
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Buffers
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, schedule
from nxdi_svd_plugin.stored.dtypes import DTYPES


def project_kernel(x: Any, u: Any) -> Any:
    """(X·U)ᵀ as [r, S] from x [S, H] and u packed, for a rank that is a multiple of 128 and at most 512 tokens."""
    plan = _planned(tuple(x.shape), tuple(u.shape), str(x.dtype))
    rank, tokens, strip = plan.ranks[0], plan.tokens, plan.strips[0]
    out = nl.ndarray((rank, tokens), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = fp32_identity(x)
    xt = nl.ndarray((PARTITIONS, plan.input_tiles * tokens), dtype=x.dtype, buffer=nl.sbuf)
    load_rows_transposed(xt, x, 0, tokens, 0, plan.inputs, plan.x_columns, identity)
    ts = []
    ts.append(nl.ndarray((PARTITIONS, tiles(rank) * tokens), dtype=x.dtype, buffer=nl.sbuf))
    project_stage(ts, u, xt, strip.subs[0].pieces, plan, rank)
    for k in nl.affine_range(rank // PARTITIONS):
        nl.store(out[nl.ds(k * PARTITIONS, PARTITIONS), 0:tokens], value=ts[0][0:PARTITIONS, nl.ds(k * tokens, tokens)])
    return out


@lru_cache
def _planned(x: tuple[int, int], u: tuple[int, int], dtype: str) -> Schedule:
    """All tokens at once, one 128 x 128 tile column of U a load."""
    rank = u[1] // tiles(x[1])
    chain = Chain("xuv", *x, (rank,), rank, DTYPES[dtype].bytes, transposed_output=True)
    return schedule(chain, Blocks(((1, (x[0],)),), Buffers(tiles(x[1]), 1, 1, tiles(x[1]))))


project = jit(project_kernel)
