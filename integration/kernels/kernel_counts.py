"""Prints the simulator's counts of one case as JSON.

It is a process of its own because a device run binds the kernels to neuronxcc.

python kernel_counts.py CASE
"""

import json
import os
import sys

os.environ["NXDI_SVD_NKI"] = "simulator"

from kernel_shapes import CASES  # noqa: E402

from nxdi_svd_plugin.kernels.measure.counts import count_call  # noqa: E402

FIELDS = (
    "hbm_read_bytes",
    "hbm_write_bytes",
    "spill_save_bytes",
    "spill_reload_bytes",
    "matmul_flops",
    "transpose_flops",
    "pe_cycles",
    "modelled_latency_us",
)


def counts(case: str) -> dict[str, float]:
    """Sums over the calls of a case."""
    total = dict.fromkeys(FIELDS, 0.0)
    for call in CASES[case]:
        trace = count_call(call)
        for name in FIELDS:
            total[name] += getattr(trace, name)
    return total


if __name__ == "__main__":
    print(json.dumps(counts(sys.argv[1])))
