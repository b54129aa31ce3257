"""Kernel calls counted in the simulator, from shapes alone in bf16: `nxdi-svd bench` and benchmarks/kernels.py.

No arithmetic is done and no device is involved. Latency is the model of docs/simulator.md: the busiest engine and
hardware.OVERLAP; hardware.MODEL_ERROR says how far off.
"""

from collections.abc import Sequence
from typing import Any

from nxdi_svd_plugin import kernels
from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels import nki
from nxdi_svd_plugin.kernels.measure.calls import Call, Shape
from nxdi_svd_plugin.simulator import TensorSpec, Trace, simulate
from nxdi_svd_plugin.simulator.front.language import bfloat16
from nxdi_svd_plugin.version import __version__


def provenance() -> dict[str, str]:
    """Where the numbers of a row come from."""
    return {"source": "simulated, no device run", "dtype": "bfloat16", "version": __version__}


def count(kernel: Any, *shapes: Sequence[int] | list[Shape], strict: bool = True, **options: Any) -> Trace:
    """The counters of one kernel on inputs of these shapes; a list of them is a list of tensors.

    Raises KernelError if the kernels are bound to neuronxcc; SimulatorError if the kernel breaks a limit.
    """
    if nki.SOURCE != "simulator":
        raise KernelError(
            f"the kernels are bound to {nki.SOURCE} in this process, and counting needs the simulator; set "
            f"{nki.VARIABLE}=simulator before anything imports them"
        )
    arrays = [
        [TensorSpec(each, bfloat16) for each in shape] if isinstance(shape, list) else TensorSpec(shape, bfloat16)
        for shape in shapes
    ]
    return simulate(kernel, *arrays, count_only=True, strict=strict, **options)[1]


def count_call(call: Call) -> Trace:
    """The counters of a call."""
    return count(getattr(kernels, call.kernel), *call.arguments, **call.options)


def counted(*traces: Trace) -> dict[str, Any]:
    """The counters of one run, or of several runs one after the other."""
    return {
        "hbm_bytes": sum(t.hbm_bytes for t in traces),
        "spill_save_bytes": sum(t.spill_save_bytes for t in traces),
        "spill_reload_bytes": sum(t.spill_reload_bytes for t in traces),
        "matmul_flops": sum(t.matmul_flops for t in traces),
        "transpose_flops": sum(t.transpose_flops for t in traces),
        "pe_cycles": sum(t.pe_cycles for t in traces),
        "sbuf_peak_bytes": max(t.sbuf_peak_bytes for t in traces),
        "modelled_us": {
            engine: round(sum(t.modelled_seconds[engine] for t in traces) * 1e6, 2)
            for engine in traces[0].modelled_seconds
        },
        "modelled_latency_us": round(sum(t.modelled_latency_us for t in traces), 2),
        "mean_dma_run_bytes": round(
            sum(t.mean_dma_run_bytes * t.dma_count for t in traces) / sum(t.dma_count for t in traces)
        ),
    }
