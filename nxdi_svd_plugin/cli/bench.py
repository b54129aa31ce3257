"""nxdi-svd bench: what a compressed model's MLPs move and compute on one core, counted by the simulator."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin.cli.output import emit

if TYPE_CHECKING:
    from nxdi_svd_plugin.kernels.mlp_counts import Layer

EPILOG = """\
examples:
  nxdi-svd bench out/llama-svd10 --tp 2 --tokens 1 2048
  nxdi-svd bench out/llama-svd10 --json

Simulated: no device runs, also where one is present. HBM bytes and tensor-engine cycles are counted; microseconds are a
model (the busiest engine, DMA at 190 GB/s). On a Trn1, integration/kernels measures.
"""
SOURCE = "simulated, no device run; us modelled"
UNITS = (("hbm_bytes", 1e6, "HBM MB"), ("pe_cycles", 1e3, "PE kcycles"), ("modelled_us", 1, "modelled us"))


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("bench", help="fused, unfused and dense MLPs in the simulator", epilog=EPILOG)
    parser.add_argument("directory", metavar="DIR", help="a compressed directory; no weight is read")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel degree (default: 1)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2048], metavar="S", help="token counts (1 2048)")


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    from nxdi_svd_plugin.errors import RecipeError

    if args.tp < 1 or min(args.tokens) < 1:
        raise RecipeError(f"--tp {args.tp} and --tokens {args.tokens} must be 1 or more")
    os.environ["NXDI_SVD_NKI"] = "simulator"  # before the kernels are imported: a Neuron SDK cannot count
    rows = list(bench(Path(args.directory), args.tp, args.tokens))
    emit(args, {"rows": rows, "totals": totals(rows)}, to_text(rows))
    return 0


def bench(directory: Path, tp: int, tokens: list[int]) -> Iterator[dict[str, Any]]:
    """One row for every different layer and token count: the cost of dense, unfused and fused on one of `tp` cores.

    "costs" has no "fused", and "no_kernel" the reason, where a kernel would refuse the pivots.
    Raises:
        CheckpointError: not a compressed directory.
        SvdError: pivots that do not divide over the cores.
    """
    from nxdi_svd_plugin import __version__
    from nxdi_svd_plugin.kernels import mlp_counts

    for (layer, up_gate, down, misfit), names in distinct_layers(directory, tp).items():
        for count in tokens:
            row: dict[str, Any] = {"layers": names, **vars(layer), "tp": tp, "tokens": count, "dtype": "bfloat16"}
            row |= {name: vars(row[name]) for name in ("gate", "up", "down")}
            row["costs"] = {"dense": vars(mlp_counts.dense(layer, count))}
            row["costs"]["unfused"] = vars(mlp_counts.unfused(layer, count))
            if misfit:
                row["no_kernel"] = f"pivots of {', '.join(misfit)} are not whole tiles of 128 neurons on a core"
            else:
                row["costs"]["fused"] = vars(mlp_counts.fused(layer, count, up_gate, down))
                row["kernels"] = [name for name, runs in (("up_gate", up_gate), ("down", down)) if runs]
            yield {**row, "source": SOURCE, "version": __version__}


def distinct_layers(directory: Path, tp: int) -> dict[tuple[Layer, bool, bool, tuple[str, ...]], list[int]]:
    """Layers that are alike on a core, by (shapes, up_gate runs, down runs, projections whose pivots do not fit)."""
    from nxdi_svd_plugin.checkpoint.verify import compressed_config
    from nxdi_svd_plugin.factorize.intermediate_order import split_evenly
    from nxdi_svd_plugin.kernels.mlp_counts import Layer, Part
    from nxdi_svd_plugin.nxdi.fusion import fusion
    from nxdi_svd_plugin.svd_config import PROJECTIONS, parse_layers

    config = compressed_config(directory)
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    width = -(-intermediate // tp)
    found: dict[tuple[Layer, bool, bool, tuple[str, ...]], list[int]] = {}
    for index, projections in parse_layers(config["svd_config"], config["num_hidden_layers"]).items():
        stored = {name: p.pivots for name, p in projections.items() if p.pivots}
        local = split_evenly(stored, intermediate, tp)[1] if stored else {}
        kernels = fusion(projections, local, width)
        parts = [
            Part(projections[n].rank, sum(b - a for a, b in local.get(n, ())), kernels.pivots.get(n, ()))
            for n in PROJECTIONS
        ]
        key = Layer(hidden, width, *parts), kernels.up_gate, kernels.down, kernels.misfit
        found.setdefault(key, []).append(index)
    return found


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over all layers for every token count; of the variants that every layer has."""
    found = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        part = [row for row in rows if row["tokens"] == tokens]
        variants = [name for name in part[0]["costs"] if all(name in row["costs"] for row in part)]
        sums = {
            name: {key: sum(len(row["layers"]) * row["costs"][name][key] for row in part) for key, _, _ in UNITS}
            for name in variants
        }
        found.append({"tokens": tokens, "costs": sums, "source": SOURCE})
    return found


def to_text(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"MLPs on one core, bfloat16; {SOURCE}"]
    for row in rows:
        ranks = ", ".join(str(row[name]["rank"] or "dense") for name in ("gate", "up", "down"))
        many = f"{len(row['layers'])} layers like layer {row['layers'][0]}, each"
        lines += [f"{many}: ranks {ranks}; tp {row['tp']}, {row['tokens']} tokens", *costs_text(row["costs"])]
        if "no_kernel" in row:
            lines.append(f"  fused    no kernel: {row['no_kernel']}; use a block of {128 * row['tp']}")
        else:
            lines[-1] += f"   ({' and '.join(row['kernels']) or 'nothing'} in a kernel)"
    for total in totals(rows):
        lines += [f"all layers, {total['tokens']} tokens", *costs_text(total["costs"])]
    return "\n".join(lines)


def costs_text(costs: dict[str, dict[str, float]]) -> list[str]:
    """A line a variant."""
    return [
        f"  {variant:<8}" + "".join(f"{cost[key] / unit:12.2f} {name}" for key, unit, name in UNITS)
        for variant, cost in costs.items()
    ]
