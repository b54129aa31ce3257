"""NKIBench's kernels in the simulator against their Trn1 profiles: rows, fitted constants, table and plot.

    NXDI_SVD_NKIBENCH=<checkout> python benchmarks/nkibench.py      # count again, then the page; a few seconds
    python benchmarks/nkibench.py --page                            # only the page, from the rows

The checkout is zhang677/AccelOpt at 47e29a7 (Apache-2.0), never part of this repository: 14 fp32 kernels of this
dialect in NKIBench/kernels, and what they took on one core of a trn1.32xlarge in
experiments/full_complete_local/profile_results.csv. Rows go to benchmarks/data/nkibench.jsonl; the page is
docs/simulator.md with docs/nkibench.png.
"""

import argparse
import csv
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from nkibench_tables import write_page

from nxdi_svd_plugin.simulator import TensorSpec, as_neuronxcc, simulate
from nxdi_svd_plugin.simulator.machine.trace import Trace

ROWS = Path(__file__).parent / "data" / "nkibench.jsonl"
PROFILES = "experiments/full_complete_local/profile_results.csv"
SOURCE = "measured: zhang677/AccelOpt 47e29a7, trn1.32xlarge, one core; simulated: here, no device"
MEASURED = ("hbm_read_bytes", "hbm_write_bytes", "spill_save_bytes", "spill_reload_bytes")
COUNTED = (*MEASURED, "pe_cycles", "scalar_cycles", "vector_cycles", "gpsimd_cycles", "psum_seconds", "dma_count")


def module(path: Path) -> ModuleType:
    """A file of the checkout, with `neuronxcc` being the simulator."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file; NXDI_SVD_NKIBENCH names a checkout of zhang677/AccelOpt")
    loaded = importlib.util.module_from_spec(spec)
    with as_neuronxcc():
        spec.loader.exec_module(loaded)
    return loaded


def arguments(task: ModuleType) -> list[Any]:
    """The kernel's arguments, tensors as placeholders: counting needs no values."""
    with mock.patch("numpy.random.normal", lambda loc=0, scale=1, size=None: np.zeros(size, np.float32)):
        values = task.transform_to_nki_inputs(task.get_inputs())
    return [TensorSpec(v.shape, v.dtype) if isinstance(v, np.ndarray) and v.ndim else v for v in values]


def kernels(root: Path) -> Iterator[tuple[str, Path, Path, dict[str, float]]]:
    """Name, reference file, kernel file and profile of every kernel, by name."""
    with (root / PROFILES).open() as lines:
        entries = sorted(csv.DictReader(lines), key=lambda entry: entry["problem"])
    for entry in entries:
        task, kernel = (root / "NKIBench" / kind / Path(entry[key]).name for kind, key in FOLDERS)
        yield entry["problem"], task, kernel, json.loads(entry["profile"])


FOLDERS = (("reference", "task"), ("kernels", "kernel"))


def measured(profile: dict[str, float]) -> dict[str, Any]:
    """The profile's figures; busy times from the shares of the latency, its own time from FLOPs and utilisation."""
    ms = profile["latency"]
    engines = ("scalar", "vector", "gpsimd")
    return {
        **{name: int(profile[name]) for name in MEASURED},
        "latency_us": round(1e3 * ms, 1),
        "busy_us": {e: round(1e3 * ms * profile[f"{e}_engine_active_time_percent"], 1) for e in engines},
        "hardware_flops": int(profile.get("hardware_flops", 0)),
        "hfu": profile["hfu_estimated_percent"],
    }


def simulated(trace: Trace) -> dict[str, Any]:
    """The counters that the comparison and the fit need."""
    return {
        **{name: getattr(trace, name) for name in COUNTED},
        "dma_runs": trace.dma_runs,
        "issues": trace.issues,
        "busy_us": {engine: round(1e6 * seconds, 1) for engine, seconds in trace.modelled_seconds.items()},
        "modelled_latency_us": round(trace.modelled_latency_us, 1),
    }


def count(root: Path) -> list[dict[str, Any]]:
    """One row for each kernel."""
    rows = []
    for name, task, kernel, profile in kernels(root):
        function, inputs = module(kernel).kernel, arguments(module(task))
        with as_neuronxcc():
            trace = simulate(function, *inputs, strict=False, count_only=True, hoist=True)[1]
        row = {"kernel": name, "measured": measured(profile), "simulated": simulated(trace), "source": SOURCE}
        rows.append(json.loads(json.dumps(row)))
        print(f"{name}: {trace.hbm_bytes / 1e6:.1f} MB simulated")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page, from the committed rows")
    root = os.environ.get("NXDI_SVD_NKIBENCH")
    if not parser.parse_args().page:
        if not root:
            raise SystemExit("NXDI_SVD_NKIBENCH is not set: name a checkout of zhang677/AccelOpt, or pass --page")
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in count(Path(root))))
    write_page([json.loads(line) for line in ROWS.read_text().splitlines()])


if __name__ == "__main__":
    main()
