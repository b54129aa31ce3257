"""The kernel part of `nxdi-svd plan`: how `up_gate` and `down` would be cut on one core of a tensor-parallel group."""

from typing import Any

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.kernels.tiling.mlp import ITEMSIZE, plan_mlp

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def kernel_plans(model: str, layers: dict[str, Any], tp: int, tokens: list[int], dtype: str) -> list[dict[str, Any]]:
    """One entry for every different set of ranks and every token count.

    `layers` is the plan's own "layers". Layers that keep a projection dense have no fused kernels and are left out;
    interpolative factors run as two plain factors. A dtype that the kernels do not know ("source") counts as bfloat16.
    Raises KernelError if `tp` does not divide the intermediate size or nothing fits into SBUF.
    """
    config = read_config(model)
    dtype = dtype if dtype in ITEMSIZE else "bfloat16"
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name, layer in layers.items():
        forms = [layer[projection] for projection in PROJECTIONS]
        if all("rank" in form for form in forms):
            gate, up, down = (int(form["rank"]) for form in forms)
            groups.setdefault((gate, up, down), []).append(name)
    plans = []
    for ranks, names in groups.items():
        for count in tokens:
            kernels = plan_mlp(config.hidden, config.intermediate, ranks, count, dtype, tp)
            entry = {kernel: plan.to_dict() for kernel, plan in kernels.items()}
            plans.append({"layers": names, "ranks": list(ranks), "tp": tp, "tokens": count, **entry})
    return plans


def kernel_text(plans: list[dict[str, Any]]) -> str:
    """The plans for people."""
    lines = ["", "kernels on one core (predicted bytes, modelled times; no device run)"]
    for plan in plans:
        lines.append(f"ranks {plan['ranks']}, tp {plan['tp']}, {plan['tokens']} tokens, {len(plan['layers'])} layers")
        for kernel in ("up_gate", "down"):
            part = plan[kernel]
            strips = ", ".join(f"{count} x {'+'.join(map(str, sizes))}" for count, sizes in part["strips"])
            moved = (part["hbm_read_bytes"] + part["hbm_write_bytes"]) / 1e6
            lines.append(f"  {kernel:<8} strips {strips}; {moved:.1f} MB of HBM; bound by {part['bound']}")
            lines.append(f"           {part['reason']}")
    return "\n".join(lines)
