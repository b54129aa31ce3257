"""nxdi-svd verify: keys, shapes, finiteness and hashes of a compressed directory."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.cli.options import add_model_option, expanded
from nxdi_svd_plugin.cli.output import emit

EPILOG = """\
examples:
  nxdi-svd verify out/smollm2-r10
  nxdi-svd verify out/smollm2-r10 --base models/smollm2     untouched tensors bit-equal to the dense model's too

Exit code 1 when a check fails.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("verify", help="check a compressed directory", epilog=EPILOG)
    add_model_option(parser, "a compressed directory")
    parser.add_argument("--base", type=expanded, metavar="DIR", help="the dense directory it was made from")


def run(args: argparse.Namespace) -> int:
    """Run every check and print them; 1 when one fails."""
    from nxdi_svd_plugin.checkpoint.verify import verify
    from nxdi_svd_plugin.report.record import recorded

    checks = verify(Path(args.model), recorded, Path(args.base) if args.base else None)
    ok = all(check.ok is not False for check in checks)
    words = {True: "ok  ", False: "FAIL", None: "none"}
    text = "\n".join(f"{words[check.ok]} {check.name} ({check.detail})" for check in checks)
    emit(args, {"ok": ok, "checks": [dataclasses.asdict(check) for check in checks]}, text)
    return 0 if ok else 1
