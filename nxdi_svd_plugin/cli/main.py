"""nxdi-svd: the parser, one word a subcommand, and the exit codes.

Each subcommand is a module `nxdi_svd_plugin.cli.<name>` with `add_parser(subparsers)`, which returns nothing and
imports nothing heavy, and `run(args) -> int`, which returns 0, or 1 when a check failed, and prints its result with
`output.emit`.

Exit codes: 0 ok; 1 a check failed or an SvdError at run time; 2 wrong usage (argparse, RecipeError); 3 an extra is
missing (MissingExtraError, whose message names the pip line); 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from nxdi_svd_plugin.cli.output import add_common_options, logging_to
from nxdi_svd_plugin.errors import MissingExtraError, RecipeError, SvdError
from nxdi_svd_plugin.version import __version__

COMMANDS = (
    "plan",
    "compress",
    "recover",
    "evaluate",
    "generate",
    "inspect",
    "verify",
    "report",
    "neuron",
    "bench",
    "doctor",
)
EPILOG = """\
examples:
  nxdi-svd doctor
  nxdi-svd COMMAND --help      options and examples of one command
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of epilogs and takes no abbreviated options."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)


def build_parser() -> tuple[Parser, dict[str, Parser], dict[str, ModuleType]]:
    """The parser, the parser of each subcommand and the module of each subcommand."""
    parser = Parser(prog="nxdi-svd", description="SVD-compressed MLPs for AWS Trainium.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"nxdi-svd-plugin {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    modules = {name: importlib.import_module(f"nxdi_svd_plugin.cli.{name}") for name in COMMANDS}
    for module in modules.values():
        module.add_parser(subparsers)
    for subparser in subparsers.choices.values():
        add_common_options(subparser)
    return parser, dict(subparsers.choices), modules


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ModuleType]:
    """Parse the command line; exit 2 with a suggestion on an unknown command or option."""
    parser, choices, modules = build_parser()
    if argv and not argv[0].startswith("-") and argv[0] not in choices:
        parser.error(f"unknown command {argv[0]!r}{suggestion(argv[0], choices)}; commands: {', '.join(choices)}")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        subparser = choices[args.command]
        known = [option for action in subparser._actions for option in action.option_strings]
        subparser.error(f"unknown argument {unknown[0]!r}{suggestion(unknown[0], known)}")
    return args, modules[args.command]


def suggestion(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """'; did you mean X?', or nothing when no known word is near."""
    close = difflib.get_close_matches(word.split("=")[0], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; wrong usage exits with SystemExit(2) as argparse does."""
    args, module = parse(sys.argv[1:] if argv is None else argv)
    args.stdout = sys.stdout
    guard = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    try:
        with guard, logging_to(args):
            return int(module.run(args))
    except SvdError as error:
        return fail(args, error, exit_code(error))
    except KeyboardInterrupt:
        again = "; the same command with --resume continues" if hasattr(args, "resume") else ""
        print(f"nxdi-svd {args.command}: interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our stdout has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def exit_code(error: SvdError) -> int:
    """3 for a missing extra, 2 for wrong usage, 1 for the rest."""
    return 3 if isinstance(error, MissingExtraError) else 2 if isinstance(error, RecipeError) else 1


def fail(args: argparse.Namespace, error: SvdError, code: int) -> int:
    """Report an error on stderr, and as the JSON object with --json."""
    print(f"nxdi-svd {args.command}: error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps({"error": str(error), "type": type(error).__name__, "exit_code": code}), file=args.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
