"""Where kernels run: the simulator, or a Trn1 through nki.baremetal, nki.benchmark, nki.profile and neuron-profile.

The device half follows `nki/api/nki/__init__.py` and `nki/neuron_profile_for_nki.rst` of aws-neuron-sdk v2.26.1.
It has never been run.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from kernel_shapes import CASES, Call

from nxdi_svd_plugin import kernels
from nxdi_svd_plugin.hardware import MODEL_BAND
from nxdi_svd_plugin.kernels.ladder.profile import counters, view
from nxdi_svd_plugin.kernels.nki import SOURCE, nki, nl, raw

PROFILE_FIELDS = ("hbm_read_bytes", "hbm_write_bytes", "spill_save_bytes", "spill_reload_bytes")
PERCENTILES = (50, 90, 99)


@lru_cache
def simulated_counts(case):
    """The simulator's counts of a case, from a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("kernel_counts.py")
    done = subprocess.run([sys.executable, script, case], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Simulator:
    """Runs here; latencies are modelled and named so."""

    name = "simulator"

    def run(self, kernel, *arrays, **options):
        return nki.simulate_kernel(getattr(kernels, kernel), *arrays, **options)

    def latency_us(self, case):
        return {"source": f"model, {MODEL_BAND}", "us": simulated_counts(case)["modelled_latency_us"]}

    def traffic(self, case, directory):
        return {name: simulated_counts(case)[name] for name in PROFILE_FIELDS}


class Device:
    """Runs on one NeuronCore."""

    name = "device"

    def run(self, kernel, *arrays, **options):
        return nki.baremetal(raw(getattr(kernels, kernel)))(*arrays, **options)

    def latency_us(self, case):
        total = dict.fromkeys(PERCENTILES, 0.0)
        for call in CASES[case]:
            timed = nki.benchmark(warmup=10, iters=100)(raw(getattr(kernels, call.kernel)))
            timed(*self._placeholders(call), **call.options)
            for percentile in PERCENTILES:
                total[percentile] += timed.benchmark_result.nc_latency.get_latency_percentile(percentile)
        return {"source": "nki.benchmark", "us": total[50], **{f"p{p}_us": total[p] for p in PERCENTILES}}

    def traffic(self, case, directory):
        total = dict.fromkeys(PROFILE_FIELDS, 0)
        for number, call in enumerate(CASES[case]):
            place = Path(directory).resolve() / str(number)
            place.mkdir()
            options = {"save_neff_name": "file.neff", "save_trace_name": "profile.ntff", "overwrite": True}
            nki.profile(working_directory=str(place), profile_nth=2, **options)(raw(getattr(kernels, call.kernel)))(
                *self._placeholders(call), **call.options
            )
            found = counters(view(place, "file.neff", "profile_exec_2.ntff"), PROFILE_FIELDS)
            for name in PROFILE_FIELDS:
                total[name] += found[name]
        return total

    def _placeholders(self, call: Call):
        from neuronxcc.nki import typing as nt

        return [nt.tensor[list(shape), nl.bfloat16] for shape in call.shapes]


def make(target):
    """The target of the command line, once the kernels are bound to what it needs."""
    wanted = {"simulator": "simulator", "device": "neuronxcc"}[target]
    assert SOURCE == wanted, f"kernels are bound to {SOURCE}; run integration/kernels in a pytest process of its own"
    return {"simulator": Simulator, "device": Device}[target]()
