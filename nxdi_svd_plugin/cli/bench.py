"""nxdi-svd bench: what a model's MLPs move and compute on one core, counted by the simulator."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.cli.options import add_model_option, number, path
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.hardware import MODEL_BAND

if TYPE_CHECKING:
    from nxdi_svd_plugin.cli.bench_layers import Kind, Ranks

EPILOG = f"""\
examples:
  nxdi-svd bench out/llama-svd10 --tp 2 --tokens 1 2048
  nxdi-svd bench Llama-3.2-1B --ratio 0.05 --output rows.jsonl
  nxdi-svd bench out/llama-svd10 --json

With --ratio a dense model is counted with pairs as in the paper and interpolative factors in as many groups as cores.
Simulated: no device runs, also where one is present. HBM bytes and tensor-engine cycles are counted; microseconds are a
model ({MODEL_BAND} in Trn1 profiles, docs/simulator.md). On a Trn1, integration/kernels measures.
"""
SOURCE = f"simulated, no device run; us modelled, {MODEL_BAND}"
UNITS = (
    ("hbm_read_bytes", 1e6, "MB read"),
    ("hbm_write_bytes", 1e6, "MB written"),
    ("pe_cycles", 1e3, "PE kcycles"),
    ("modelled_us", 1, "modelled us"),
)

SUMMED = ("hbm_bytes", *(key for key, _, _ in UNITS))


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("bench", help="fused, unfused and dense MLPs in the simulator", epilog=EPILOG)
    add_model_option(parser, "a compressed or, with --ratio, a dense directory; no weight is read")
    parser.add_argument("--ratio", type=number, metavar="R", help="of a dense model: share of the MLP weights to save")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel degree (default: 1)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2048], metavar="S", help="token counts (1 2048)")
    parser.add_argument("--output", type=path, metavar="FILE", help="write the rows there, as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    from nxdi_svd_plugin.errors import RecipeError

    if args.tp < 1 or min(args.tokens) < 1:
        raise RecipeError(f"--tp {args.tp} and --tokens {args.tokens} must be 1 or more")
    versions.import_extra("ml_dtypes", "simulator")
    os.environ["NXDI_SVD_NKI"] = "simulator"  # before the kernels are imported: a Neuron SDK cannot count
    from nxdi_svd_plugin.checkpoint.atomic import json_text, write_bytes
    from nxdi_svd_plugin.cli.bench_layers import ranks_of

    found = ranks_of(Path(args.model), args.ratio, args.tp)
    rows = [row for ranks in found for row in bench(ranks, args.tp, args.tokens)]
    if args.output:
        write_bytes(args.output, "".join(json_text(row, indent=None) + "\n" for row in rows).encode())
    notes = notes_of(found)
    emit(args, {"rows": rows, "totals": totals(rows), "notes": notes}, "\n".join([to_text(rows), *notes]))
    return 0


def notes_of(found: list[Ranks]) -> list[str]:
    """Forms that were not counted, and that an installed compiler was not used."""
    notes = [f"not counted: {ranks.origin}: {ranks.refusal}" for ranks in found if ranks.refusal]
    if compiler := versions.neuronxcc():
        notes.append(f"neuronx-cc {compiler} is installed and was not used; integration/kernels runs kernels on a Trn1")
    return notes


def bench(ranks: Ranks, tp: int, tokens: list[int]) -> Iterator[dict[str, Any]]:
    """One row for every different layer and token count: the cost of dense, unfused and fused on one of `tp` cores.

    "costs" has no "fused", and "no_kernel" the reason, where a kernel would refuse the pivots.
    """
    for kind in ranks.kinds:
        for count in tokens:
            yield {"layers": kind.indices, "ranks_from": ranks.origin, "tp": tp, **_row(kind, count), "source": SOURCE}


def _row(kind: Kind, tokens: int) -> dict[str, Any]:
    from nxdi_svd_plugin.kernels.measure import counts
    from nxdi_svd_plugin.kernels.measure import layer as mlp

    layer, fit = kind.layer, kind.fit
    row: dict[str, Any] = {"tokens": tokens, **asdict(layer)}
    costs = {"dense": mlp.dense(layer, tokens), "unfused": mlp.unfused(layer, tokens)}
    if fit.misfit:
        row["no_kernel"] = fit.describe()
    else:
        row["kernels"] = mlp.kernels_of(layer, fit, tokens)
        costs["fused"] = mlp.fused(layer, fit, tokens)
    return {**row, "costs": {name: asdict(cost) for name, cost in costs.items()}, **counts.provenance()}


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over all layers for every set of ranks and token count; of the variants that every layer has."""
    found = []
    for origin, tokens in dict.fromkeys((row["ranks_from"], row["tokens"]) for row in rows):
        part = [row for row in rows if (row["ranks_from"], row["tokens"]) == (origin, tokens)]
        variants = [name for name in part[0]["costs"] if all(name in row["costs"] for row in part)]
        sums = {
            name: {key: sum(len(row["layers"]) * row["costs"][name][key] for row in part) for key in SUMMED}
            for name in variants
        }
        found.append({"ranks_from": origin, "tokens": tokens, "costs": sums, "source": SOURCE})
    return found


def to_text(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"MLPs on one core, bfloat16; {SOURCE}"]
    for row in rows:
        ranks = ", ".join(str(row[name]["rank"] or "dense") for name in ("gate", "up", "down"))
        form = " interpolative" if any(row[name]["own"] for name in ("gate", "up", "down")) else ""
        many = f"{len(row['layers'])} layers like layer {row['layers'][0]}, each"
        several = f", {row['groups']} groups a core" if row["groups"] > 1 else ""
        lines += [
            f"{many}: ranks {ranks}{form}; tp {row['tp']}{several}, {row['tokens']} tokens",
            *costs_text(row["costs"]),
        ]
        if "no_kernel" in row:
            lines.append(f"  fused    no kernel for {row['no_kernel']}")
        else:
            lines[-1] += f"   ({' and '.join(row['kernels']) or 'nothing'} in a kernel)"
    for total in totals(rows):
        lines += [f"all layers, {total['tokens']} tokens ({total['ranks_from']})", *costs_text(total["costs"])]
    return "\n".join(lines)


def costs_text(costs: dict[str, dict[str, float]]) -> list[str]:
    """A line a variant."""
    return [
        f"  {variant:<8}" + "".join(f"{cost[key] / unit:12.2f} {name}" for key, unit, name in UNITS)
        for variant, cost in costs.items()
    ]
