"""nxdi-svd plan: ranks, bytes and memory of a compression from config.json alone."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.options import add_model_option, positive
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.cli.recipe_options import add_recipe_options, recipe_from

EPILOG = """\
examples:
  nxdi-svd plan --model Llama-3.2-1B --ratio 0.10
  nxdi-svd plan --model Llama-3.2-1B --recipe recipe.yaml --json
  nxdi-svd plan --model Llama-3.2-1B --ratio 0.05 --tp 2 --tokens 1 640 2048

Reads config.json only: the weights need not be there.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("plan", help="ranks, bytes and memory before any weight is read", epilog=EPILOG)
    add_model_option(parser, "directory with the dense model's config.json")
    group = parser.add_argument_group("kernels and the host's memory (shown if --tp is given)")
    group.add_argument("--tp", type=positive, metavar="N", help="tensor-parallel degree")
    group.add_argument("--tokens", type=positive, nargs="+", default=[1, 2048], metavar="S", help="tokens (1 2048)")
    add_recipe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from nxdi_svd_plugin.checkpoint.source import read_config
    from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
    from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text

    recipe = recipe_from(args)
    plan = make_plan(args.model, recipe)
    text = plan_text(plan)
    if args.tp is not None:
        from nxdi_svd_plugin.cli.plan_kernels import host_entry, host_text, kernel_plans, kernel_text

        config = read_config(args.model)
        layers = decide_ranks(config, recipe)
        plan["kernels"] = list(kernel_plans(config.hidden, layers, args.tp, args.tokens, recipe.dtype))
        plan["host_memory"] = host_entry(config, layers, args.tp, recipe.dtype)
        text += "\n" + kernel_text(plan["kernels"]) + "\n" + host_text(plan["host_memory"])
    emit(args, plan, text)
    return 0
