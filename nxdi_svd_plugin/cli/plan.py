"""nxdi-svd plan: ranks, bytes and memory of a compression from config.json alone."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.cli.recipe_options import add_recipe_options, recipe_from

EPILOG = """\
examples:
  nxdi-svd plan --model Llama-3.2-1B --ratio 0.10
  nxdi-svd plan --model Llama-3.2-1B --recipe recipe.yaml --json

Reads config.json only: the weights need not be there.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("plan", help="ranks, bytes and memory before any weight is read", epilog=EPILOG)
    parser.add_argument("--model", required=True, metavar="DIR", help="directory with the dense model's config.json")
    add_recipe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from nxdi_svd_plugin.compress.summary import make_plan, plan_text

    plan = make_plan(args.model, recipe_from(args))
    emit(args, plan, plan_text(plan))
    return 0
