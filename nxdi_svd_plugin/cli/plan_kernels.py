"""The kernel part of `nxdi-svd plan`: how `up_gate` and `down` would be cut on one core of a tensor-parallel group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nxdi_svd_plugin.kernels.measure.plan import plan_mlp
from nxdi_svd_plugin.stored.cells import pivot_runs
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import Layers, Mlp, alike, mlp_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import length, side_by_side


def kernel_plans(hidden: int, layers: Layers, tp: int, tokens: list[int], dtype: str) -> Iterator[dict[str, Any]]:
    """One entry for every different MLP and token count: the plan of every kernel that runs.

    "ranks" has None for a dense projection; "no_kernel" says why a kernel does not run. A dtype that the kernels do not
    know ("source") counts as bfloat16.
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
            yield {**entry, **{kernel: plan.to_dict() for kernel, plan in plans.items()}}


def _side_by_side(mlp: Mlp) -> Mlp:
    """The same with the pivots of gate, up and down side by side: where they lie is not known before they are chosen,
    and no byte of HBM and no cycle depends on it."""
    counts = tuple(map(length, pivot_runs(mlp)))
    runs = dict(zip(PROJECTIONS, side_by_side(counts, mlp.width // mlp.groups), strict=True))
    moved = {name: replace(p, pivots=runs[name]) if isinstance(p, LowRank) else p for name, p in mlp.items()}
    return mlp_of(mlp.width, moved)


def kernel_text(plans: list[dict[str, Any]]) -> str:
    """The plans for people."""
    lines = ["", "kernels on one core (predicted bytes, modelled times; no device run)"]
    for plan in plans:
        ranks = ", ".join(str(rank or "dense") for rank in plan["ranks"])
        lines.append(f"ranks {ranks}, tp {plan['tp']}, {plan['tokens']} tokens, {len(plan['layers'])} layers")
        if "no_kernel" in plan:
            lines.append(f"  no kernel for {plan['no_kernel']}")
        for kernel in ("up_gate", "down"):
            if kernel in plan:
                lines += _kernel_lines(kernel, plan[kernel])
    return "\n".join(lines)


def _kernel_lines(kernel: str, part: dict[str, Any]) -> list[str]:
    strips = ", ".join(f"{count} x {'+'.join(map(str, sizes))}" for count, sizes in part["strips"])
    moved = (part["hbm_read_bytes"] + part["hbm_write_bytes"]) / 1e6
    return [
        f"  {kernel:<8} strips {strips}; {moved:.1f} MB of HBM; bound by {part['bound']}",
        f"           {part['reason']}",
    ]
