"""What a model card says about serving: the `mlp_impl` and the tensor-parallel degree that fit the stored MLPs."""

from __future__ import annotations

from dataclasses import dataclass

from nxdi_svd_plugin.stored.kernel_fit import even_degrees, kernel_degrees, kernel_fit
from nxdi_svd_plugin.stored.layers import Layers, groups_of

USUAL = 2
"""Degree where nothing speaks against it: the two NeuronCores of a Trainium chip."""


@dataclass(frozen=True)
class Advice:
    """`--mlp-impl`, `--tp-degree`, and why, where that needs saying; "" elsewhere."""

    impl: str
    tp: int
    why: str = ""


def serving(layers: Layers) -> Advice:
    """The fused kernels at a degree at which no pivots keep a projection from them, plain products where none is.

    As many cores as groups is what the model was compressed for.
    """
    degrees, groups = kernel_degrees(layers), groups_of(layers)
    most = groups if groups > 1 else USUAL
    tp = max((degree for degree in degrees if degree <= most), default=1)
    fits = [kernel_fit(mlp, tp) for mlp in layers.values()]
    reason = next((fit.describe() for fit in fits if fit.refused), "")
    if not degrees:
        return Advice("svd", most, f"The fused kernels cannot run this model ({reason}).")
    if not any(fit.pivots for fit in fits):
        return Advice("svd", most, f"The fused kernels run no projection of this model ({reason}).")
    if degrees == even_degrees(layers):
        return Advice("svd_fused", tp)
    at = " or ".join(map(str, degrees))
    why = (
        f"The fused kernels run this model at tensor-parallel degree {at}, where its pivots are whole tiles of\n"
        "neurons on every core; at other degrees use `svd` in place of `svd_fused`."
    )
    return Advice("svd_fused", tp, why)
