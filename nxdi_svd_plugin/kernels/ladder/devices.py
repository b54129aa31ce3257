"""Running a case: in the simulator, or on a NeuronCore through nki.baremetal, its profile and nki.benchmark.

The device half follows `nki/api/nki/__init__.py` and `nki/neuron_profile_for_nki.rst` of aws-neuron-sdk v2.26.1. It has
never met a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nxdi_svd_plugin.kernels.ladder.cases import Case
from nxdi_svd_plugin.kernels.ladder.profile import counters, view
from nxdi_svd_plugin.kernels.nki import nki, raw

MOVED = ("hbm_read_bytes", "hbm_write_bytes")
"""The counters that show that a kernel ran, of a Trace and of a profile's summary."""
NEFF, TRACE = "file.neff", "profile.ntff"
"""nki.baremetal takes no other name for the first where the second is given (its docstring)."""


class Simulated:
    """A case in the simulator."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def run(self) -> Any:
        """The output."""
        from nxdi_svd_plugin.simulator import simulate

        output, self.trace = simulate(self.case.kernel, *self.case.inputs, **self.case.options)
        return output

    def counters(self) -> dict[str, int]:
        """MOVED of the run."""
        return {name: getattr(self.trace, name) for name in MOVED}

    def microseconds(self) -> float:
        """Modelled."""
        return float(self.trace.modelled_latency_us)


class Neuron:
    """A case on a NeuronCore; files go to the working directory."""

    def __init__(self, case: Case) -> None:
        self.case, self.kernel = case, raw(case.kernel)

    def run(self) -> Any:
        """The output of the run that is profiled."""
        artifacts = Path("artifacts").resolve()
        artifacts.mkdir()  # nki.baremetal wants an empty one
        files = {"save_neff_name": NEFF, "save_trace_name": TRACE, "artifacts_dir": str(artifacts)}
        return nki.baremetal(**files)(self.kernel)(*self.case.inputs, **self.case.options)

    def counters(self) -> dict[str, int]:
        """MOVED of the run's profile."""
        return counters(view(Path.cwd(), NEFF, TRACE), MOVED)

    def microseconds(self) -> float:
        """Measured."""
        timed = nki.benchmark(warmup=10, iters=100)(self.kernel)
        timed(*self.case.inputs, **self.case.options)
        return float(timed.benchmark_result.nc_latency.get_latency_percentile(50))


MACHINES: dict[str, type[Simulated] | type[Neuron]] = {"simulator": Simulated, "neuron": Neuron}
