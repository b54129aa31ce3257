"""nxdi-svd compress: factor the MLP weights of a model and write a compressed directory."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.options import add_model_option, expanded
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.cli.recipe_options import add_recipe_options, recipe_from

EPILOG = """\
examples:
  nxdi-svd compress --model Llama-3.2-1B --output Llama-3.2-1B-svd10 --ratio 0.10
  nxdi-svd compress --model M --output OUT --recipe recipe.yaml --calibration train.jsonl
  nxdi-svd compress --model M --output OUT --recipe recipe.yaml --resume
  torchrun --nproc-per-node 4 -m nxdi_svd_plugin.cli.main compress --model M --output OUT

Flags override the recipe file. Killed at any moment, --resume continues. The source is only read.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("compress", help="factor a model's MLP weights", epilog=EPILOG)
    add_model_option(parser, "dense Hugging Face directory (Llama or Qwen3)")
    parser.add_argument("--output", required=True, type=expanded, metavar="DIR", help="directory to write")
    add_recipe_options(parser)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--resume", action="store_true", help="continue an unfinished output")
    run_group.add_argument("--overwrite", action="store_true", help="replace the model that --output holds")
    run_group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    run_group.add_argument("--dry-run", action="store_true", help="make every check, print the plan and write nothing")


def run(args: argparse.Namespace) -> int:
    """Compress, and print ranks, errors and ratios."""
    from nxdi_svd_plugin.compress.run.run import compress
    from nxdi_svd_plugin.compress.run.world import prints_results

    recipe = recipe_from(args)
    if args.dry_run:
        return dry_run(args, recipe)
    report = compress(
        args.model,
        args.output,
        recipe,
        resume=args.resume,
        overwrite=args.overwrite,
        device=args.device,
        progress=not args.quiet,
    )
    if prints_results():
        emit(args, report.to_dict(), report.to_text())
    return 0


def dry_run(args: argparse.Namespace, recipe: Any) -> int:
    """Every check that compress makes before the first layer, and the plan; nothing is written."""
    from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
    from nxdi_svd_plugin.compress.run.run import check
    from nxdi_svd_plugin.compress.run.world import pick_device, prints_results

    pick_device(args.device)
    check(args.model, args.output, recipe, resume=args.resume, overwrite=args.overwrite)
    plan = make_plan(args.model, recipe)
    if prints_results():
        emit(args, plan, plan_text(plan) + "\nall checks passed; nothing was written (--dry-run)")
    return 0
