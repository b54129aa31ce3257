"""A numpy simulator of the neuronxcc.nki dialect (NKI Beta 1) with the limits and counters of Trn1.

`simulate(kernel, *arrays, **options) -> (outputs, Trace)` runs a kernel; `as_neuronxcc()` lets other people's kernels
import it as `neuronxcc.nki`. `front/` is what a kernel imports, `program/` what it becomes, `machine/` what is done
with that. docs/simulator.md has the rules.
"""

from nxdi_svd_plugin.simulator.front.kernel import Kernel, simulate
from nxdi_svd_plugin.simulator.front.neuronxcc import as_neuronxcc
from nxdi_svd_plugin.simulator.front.typing import TensorSpec
from nxdi_svd_plugin.simulator.machine.trace import Trace

__all__ = ["Kernel", "TensorSpec", "Trace", "as_neuronxcc", "simulate"]
