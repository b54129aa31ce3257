"""What a model card says about serving: the `mlp_impl` and tensor-parallel degree that fit the stored pivots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TILE = 128
DEGREES = (1, 2, 4, 8)


def serving(config: Mapping[str, Any]) -> tuple[str, int, str]:
    """(mlp_impl, tp_degree, a sentence about interpolative projections or nothing) for a config.json.

    The fused kernels take pivots in whole tiles of 128 neurons on every core: every run of pivots, of all three
    projections, begins and ends at a multiple of 128 x tp.
    """
    layers = config.get("svd_config", {}).get("layers", {}).values()
    edges = {edge for layer in layers for p in layer.values() for run in p.get("pivots", ()) for edge in run}
    if not edges:
        return "svd_fused", 2, ""
    edges.add(config["intermediate_size"])
    fitting = [tp for tp in DEGREES if not any(edge % (TILE * tp) for edge in edges)]
    if not fitting:
        return (
            "svd",
            2,
            f"The fused kernels cannot run this model: its pivots are not whole tiles of {TILE} neurons.\n\n",
        )
    degrees = " or ".join(map(str, fitting))
    return (
        "svd_fused",
        max(tp for tp in fitting if tp <= 2),
        f"The fused kernels run this model at tensor-parallel degree {degrees}, where its pivots are whole tiles of "
        f"{TILE} neurons on every core;\nat other degrees use `svd` in place of `svd_fused`.\n\n",
    )
