"""Mean and variance on the Vector Engine: `bn_stats` of pieces and `bn_aggr` of what they gave."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import BN_STATS
from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import emit
from nxdi_svd_plugin.simulator.program.dtypes import Array, as_dtype
from nxdi_svd_plugin.simulator.program.functions import as_math
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import View


def bn_stats(data: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """Count, mean and variance*count of the even and of the odd elements: [P, 6]; up to 512 elements per partition."""
    api = "nki.isa.bn_stats"
    data = need(data, api, "data", "sbuf", "psum")
    if prod(data.shape[1:]) > BN_STATS:
        fail(f"{api}: {prod(data.shape[1:])} elements per partition, at most {BN_STATS}")

    def compute(x: Array) -> Array:
        parts = [as_math(x).reshape(len(x), -1)[:, half::2] for half in (0, 1)]
        columns = [
            f for p in parts for f in (np.full(len(p), p.shape[1]), _mean(p), _mean(p, spread=True) * p.shape[1])
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    out = as_dtype(dtype) if dtype is not None else data.dtype
    space, axes = (*data.shape, 6), tuple(range(data.ndim))
    return emit.result(
        "bn_stats", "vector", space, [(data, axes)], (0, data.ndim), compute, out, mask=mask, mask_axes=axes
    )


def _mean(part: Array, spread: bool = False) -> Array:
    if not part.shape[1]:
        return np.zeros(len(part), np.float32)
    return np.asarray(part.var(axis=1) if spread else part.mean(axis=1))


def bn_aggr(data: Any, *, mask: Any = None, dtype: Any = None) -> View:
    """Mean and variance of everything that went into the given bn_stats results: [P, 2]."""
    data = need(data, "nki.isa.bn_aggr", "data", "sbuf", "psum")

    def compute(x: Array) -> Array:
        count, mean, spread = (as_math(x).reshape(len(x), -1)[:, i::3] for i in range(3))
        total = count.sum(axis=1)
        centre = (count * mean).sum(axis=1) / total
        variance = (spread + count * (mean - centre[:, None]) ** 2).sum(axis=1) / total
        return np.stack([centre, variance], axis=1)

    out = as_dtype(dtype) if dtype is not None else data.dtype
    space, axes = (*data.shape, 2), tuple(range(data.ndim))
    return emit.result(
        "bn_aggr", "vector", space, [(data, axes)], (0, data.ndim), compute, out, mask=mask, mask_axes=axes
    )
