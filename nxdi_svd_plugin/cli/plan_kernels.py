"""The serving part of `nxdi-svd plan`: how the kernels would be cut on one core, and the host's memory for NxDI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.hardware import MODEL_BAND
from nxdi_svd_plugin.kernels.measure.plan import plan_mlp
from nxdi_svd_plugin.report.host_memory import ASSUMPTION, host_memory
from nxdi_svd_plugin.stored.cells import pivot_runs
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import Layers, Mlp, alike, mlp_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import length, side_by_side


def kernel_plans(hidden: int, layers: Layers, tp: int, tokens: list[int], dtype: str) -> Iterator[dict[str, Any]]:
    """One entry for every different MLP and token count: the plan of every kernel that runs.

    "ranks" has None for a dense projection; "no_kernel" says why a kernel does not run. A dtype that the kernels do not
    know ("source") counts as bfloat16. "counts" of a kernel are the simulator's, in bfloat16, and left out where its
    packages are missing.
    Raises KernelError if `tp` does not divide the width of an MLP or nothing fits into SBUF.
    """
    dtype = dtype if dtype in DTYPES else "bfloat16"
    for mlp, indices in alike(layers).items():
        apart = _side_by_side(mlp)
        ranks = [p.rank if isinstance(p, LowRank) else None for _, p in mlp.items()]
        for count in tokens:
            entry = {"layers": [str(i) for i in indices], "ranks": ranks, "tp": tp, "tokens": count}
            plans = plan_mlp(hidden, apart, count, dtype, tp)
            if why := kernel_fit(apart, tp).describe():
                entry["no_kernel"] = why
            counts = _counts(hidden, apart, tp, count) if plans else {}
            yield {**entry, **{kernel: {**plan.to_dict(), **counts.get(kernel, {})} for kernel, plan in plans.items()}}


def _counts(hidden: int, mlp: Mlp, tp: int, tokens: int) -> dict[str, Any]:
    """Instructions, DMA transfers and descriptors (contiguous runs) of every kernel that runs."""
    if versions.installed("ml_dtypes") is None:
        return {}
    os.environ["NXDI_SVD_NKI"] = "simulator"  # before the kernels are imported: a Neuron SDK cannot count
    from nxdi_svd_plugin.kernels.measure.counts import count_call
    from nxdi_svd_plugin.kernels.measure.layer import fused_calls, on_core

    calls = fused_calls(on_core(hidden, mlp.width, mlp, tp), kernel_fit(mlp, tp), tokens)
    traces = {call.kernel: count_call(call) for call in calls}
    return {
        kernel: {
            "counts": {
                "instructions": trace.instructions,
                "transfers": trace.dma_count,
                "descriptors": sum(trace.dma_runs.values()),
            }
        }
        for kernel, trace in traces.items()
    }


def _side_by_side(mlp: Mlp) -> Mlp:
    """The same with the pivots of gate, up and down side by side: where they lie is not known before they are chosen,
    and no byte of HBM and no cycle depends on it."""
    counts = tuple(map(length, pivot_runs(mlp)))
    runs = dict(zip(PROJECTIONS, side_by_side(counts, mlp.width // mlp.groups), strict=True))
    moved = {name: replace(p, pivots=runs[name]) if isinstance(p, LowRank) else p for name, p in mlp.items()}
    return mlp_of(mlp.width, moved)


def kernel_text(plans: list[dict[str, Any]]) -> str:
    """The plans for people."""
    lines = ["", f"kernels on one core (predicted bytes, modelled times, {MODEL_BAND}; no device run)"]
    for plan in plans:
        ranks = ", ".join(str(rank or "dense") for rank in plan["ranks"])
        lines.append(f"ranks {ranks}, tp {plan['tp']}, {plan['tokens']} tokens, {len(plan['layers'])} layers")
        if "no_kernel" in plan:
            lines.append(f"  no kernel for {plan['no_kernel']}")
        for kernel in ("mlp", "up_gate", "down"):
            if kernel in plan:
                lines += _kernel_lines(kernel, plan[kernel])
    return "\n".join(lines)


def _kernel_lines(kernel: str, part: dict[str, Any]) -> list[str]:
    counts = part.get("counts")
    counted = (
        f"{counts['instructions']} instructions, {counts['descriptors']} descriptors of {counts['transfers']} "
        "transfers (simulator, bfloat16)"
        if counts
        else f"instructions and descriptors are not counted: {versions.pip_line('simulator')}"
    )
    cut = ", ".join(f"{count} x {'+'.join(map(str, sizes))}" for count, sizes in part["strips"])
    way = f"strips {cut}" if cut else "X·U through HBM"
    moved = (part["hbm_read_bytes"] + part["hbm_write_bytes"]) / 1e6
    return [
        f"  {kernel:<8} {way}; {moved:.1f} MB of HBM; bound by {part['bound']}",
        f"           {part['reason']}",
        f"           {counted}",
    ]


def host_entry(config: SourceConfig, layers: Layers, tp: int, dtype: str) -> dict[str, Any]:
    """The host's memory for NxDI in bytes, with the assumption in words; other dtypes count as bfloat16, as above."""
    itemsize = DTYPES[dtype if dtype in DTYPES else "bfloat16"].bytes
    return {"tp": tp, **asdict(host_memory(config, layers, tp, itemsize)), "assumption": ASSUMPTION}


def host_text(entry: dict[str, Any]) -> str:
    """The same for people."""
    trace, shard = (entry[step] / 2**30 for step in ("trace", "shard"))
    return (
        f"\nhost memory that NxDI takes at tp {entry['tp']}: about {trace:.1f} GiB to trace, {shard:.1f} GiB to shard "
        f"the weights\n(modelled: {entry['assumption']})"
    )
