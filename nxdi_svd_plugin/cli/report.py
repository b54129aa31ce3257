"""nxdi-svd report: report.md with tables and figures out of report.json and evaluations."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.options import path
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.errors import RecipeError

EPILOG = """\
examples:
  nxdi-svd evaluate --base DENSE --model OUT --text FILE --json > text.json
  nxdi-svd report OUT --evaluation text.json
  nxdi-svd report OUT05 OUT10 OUT20 --evaluation e05.json --evaluation e10.json --evaluation e20.json --output DIR

With several directories, the evaluations are dealt out in order, equally many to each.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("report", help="tables and figures of compressed models", epilog=EPILOG)
    parser.add_argument("models", nargs="+", type=path, metavar="DIR", help="compressed directories")
    parser.add_argument(
        "--evaluation", action="append", default=[], type=path, metavar="FILE", help="what `evaluate --json` printed"
    )
    parser.add_argument("--output", type=path, metavar="DIR", help="where report.md goes (default: the first DIR)")


def run(args: argparse.Namespace) -> int:
    """Write report.md and print the names of the files."""
    from nxdi_svd_plugin.report.markdown import read_entry, write_report

    share, rest = divmod(len(args.evaluation), len(args.models))
    if rest:
        raise RecipeError(
            f"{len(args.evaluation)} evaluations cannot be dealt out to {len(args.models)} models; give equally "
            "many for each, in the order of the models"
        )
    parts = [args.evaluation[i * share : (i + 1) * share] for i in range(len(args.models))]
    entries = [read_entry(model, files) for model, files in zip(args.models, parts, strict=True)]
    files = [str(path) for path in write_report(entries, args.output or args.models[0])]
    emit(args, {"files": files}, "\n".join(files))
    return 0
