"""The kernel part of `nxdi-svd plan`: how `up_gate` and `down` would be cut on one core of a tensor-parallel group."""

from collections.abc import Sequence
from typing import Any

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.kernels.measure.plan import ITEMSIZE, plan_mlp
from nxdi_svd_plugin.kernels.tiling.limits import PARTITIONS
from nxdi_svd_plugin.kernels.tiling.segments import Runs, side_by_side

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def kernel_plans(model: str, layers: dict[str, Any], tp: int, tokens: list[int], dtype: str) -> list[dict[str, Any]]:
    """One entry for every different set of ranks and every token count.

    `layers` is the plan's own "layers"; those that keep a projection dense are left out. The pivots of interpolative
    factors are assumed side by side (no byte depends on it); where they are no whole tiles on every core, "no_kernel"
    says so in place of a plan. A dtype that the kernels do not know ("source") counts as bfloat16.
    Raises KernelError if `tp` does not divide the intermediate size or nothing fits into SBUF.
    """
    config = read_config(model)
    dtype = dtype if dtype in ITEMSIZE else "bfloat16"
    groups: dict[tuple[tuple[int, str], ...], list[str]] = {}
    for name, layer in layers.items():
        forms = [layer[projection] for projection in PROJECTIONS]
        if all("rank" in form for form in forms):
            groups.setdefault(tuple((int(form["rank"]), form["form"]) for form in forms), []).append(name)
    plans = []
    for kinds, names in groups.items():
        ranks = tuple(rank for rank, _ in kinds)
        reason, pivots = pivot_runs(kinds, config.intermediate, tp)
        for count in tokens:
            entry: dict[str, Any] = {"layers": names, "ranks": list(ranks), "tp": tp, "tokens": count}
            if reason:
                plans.append({**entry, "no_kernel": reason})
                continue
            kernels = plan_mlp(config.hidden, config.intermediate, ranks, count, dtype, tp, pivots)
            plans.append({**entry, **{kernel: plan.to_dict() for kernel, plan in kernels.items()}})
    return plans


def pivot_runs(kinds: Sequence[tuple[int, str]], intermediate: int, tp: int) -> tuple[str, tuple[Runs, ...]]:
    """(why there is no kernel, or nothing; tiles of the pivots on one core) for (rank, form) of gate, up and down."""
    pivots = [rank if form == "interpolative" else 0 for rank, form in kinds]
    whole = PARTITIONS * tp
    if not any(pivots) or intermediate % tp:
        return "", ((), (), ())
    if any(count % whole for count in (intermediate, *pivots)):
        return (
            f"at tp {tp} the kernels need the intermediate size {intermediate} and interpolative ranks {pivots} in "
            f"multiples of {whole}: use --block {whole} or --form pair"
        ), ((), (), ())
    return "", side_by_side(tuple(count // whole for count in pivots), intermediate // whole)


def kernel_text(plans: list[dict[str, Any]]) -> str:
    """The plans for people."""
    lines = ["", "kernels on one core (predicted bytes, modelled times; no device run)"]
    for plan in plans:
        lines.append(f"ranks {plan['ranks']}, tp {plan['tp']}, {plan['tokens']} tokens, {len(plan['layers'])} layers")
        if "no_kernel" in plan:
            lines.append(f"  {plan['no_kernel']}")
            continue
        for kernel in ("up_gate", "down"):
            part = plan[kernel]
            strips = ", ".join(f"{count} x {'+'.join(map(str, sizes))}" for count, sizes in part["strips"])
            moved = (part["hbm_read_bytes"] + part["hbm_write_bytes"]) / 1e6
            lines.append(f"  {kernel:<8} strips {strips}; {moved:.1f} MB of HBM; bound by {part['bound']}")
            lines.append(f"           {part['reason']}")
    return "\n".join(lines)
