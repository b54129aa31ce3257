"""The kernels' weights keep their layout: NxD's weight layout optimisation is told to leave them alone.

NxD transposes weights as the compiler likes them. It spares those that it sees going into an NKI kernel and nowhere
else (get_nki_kernel_weight_names in neuronx_distributed/trace/hlo_utils.py); naming them does not rely on that.
"""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.nxdi.low_rank import parameter_names
from nxdi_svd_plugin.nxdi.mlp_impl import FUSED
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import Layers

SEPARATOR = "->"
"""Between the parts of a parameter's name in a traced graph (hlo_utils.py, same place)."""


def kernel_weights(layers: Layers, tp: int) -> list[str]:
    """The names in the traced graph of every parameter that a kernel takes.

    NxD 0.15 (SDK 2.26) compares them as they are, later ones match them as regular expressions; they are the same.
    """
    return [
        SEPARATOR.join(("layers", str(index), "mlp", name, parameter))
        for index, mlp in layers.items()
        for name in kernel_fit(mlp, tp).pivots
        for names in parameter_names(mlp, name, tp)
        for parameter in names
    ]


def spare_kernel_weights(neuron_config: Any, layers: Layers | None) -> None:
    """Add the kernels' parameters to `weights_to_skip_layout_optimization`, where the kernels run."""
    if layers is not None and neuron_config.mlp_impl == FUSED:
        asked = neuron_config.weights_to_skip_layout_optimization
        names = kernel_weights(layers, neuron_config.tp_degree)
        neuron_config.weights_to_skip_layout_optimization = list(dict.fromkeys([*asked, *names]))
