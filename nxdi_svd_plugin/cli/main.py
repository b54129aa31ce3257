"""nxdi-svd: the parser, one word a subcommand, and the exit codes.

Each subcommand is a module `nxdi_svd_plugin.cli.<name>` with `add_parser(subparsers)`, which returns nothing and
imports nothing heavy, and `run(args) -> int`, which returns 0, or 1 when a check failed, and prints its result with
`output.emit`.

`--json doctor`, `help doctor` and `version` are `doctor --json`, `doctor --help` and `--version`.

Exit codes: 0 ok; 1 a check failed or an SvdError at run time; 2 wrong usage (argparse, RecipeError); 3 an extra is
missing (MissingExtraError, whose message names the pip line, or an ImportError); 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from nxdi_svd_plugin.cli import boundary
from nxdi_svd_plugin.cli.options import place_model
from nxdi_svd_plugin.cli.output import FLAGS, VALUED, add_common_options, logging_to, silence
from nxdi_svd_plugin.errors import MissingExtraError, RecipeError, SvdError
from nxdi_svd_plugin.version import __version__

COMMANDS = (
    "plan",
    "compress",
    "recover",
    "evaluate",
    "generate",
    "sample",
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
  nxdi-svd help COMMAND      options and examples of one command
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of epilogs, takes no abbreviations and says first what is wrong."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit 2 with the message and where to read on, without the list of all options."""
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` shows options and examples\n")


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
    argv = command_first(argv)
    if argv and not argv[0].startswith("-") and argv[0] not in choices:
        parser.error(f"unknown command {argv[0]!r}{suggestion(argv[0], choices)}; commands: {', '.join(choices)}")
    args, unknown = parser.parse_known_args(argv)
    subparser = choices[args.command]
    unknown = place_model(args, unknown, subparser)
    if unknown:
        known = [option for action in subparser._actions for option in action.option_strings]
        subparser.error(f"unknown argument {unknown[0]!r}{suggestion(unknown[0], known)}")
    return args, modules[args.command]


def command_first(argv: Sequence[str]) -> list[str]:
    """The command line with its command before the global options, and the words help and version as options."""
    rest, options = list(argv), []
    while rest and rest[0].partition("=")[0] in (*FLAGS, *VALUED):
        count = 2 if rest[0] in VALUED else 1
        options += rest[:count]
        del rest[:count]
    if rest[:1] == ["version"]:
        return ["--version"]
    if rest[:1] == ["help"]:
        return [*rest[1:2], "--help"]
    return [*rest[:1], *options, *rest[1:]]


def suggestion(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """'; did you mean X?', or nothing when no known word is near."""
    close = difflib.get_close_matches(word.split("=")[0], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; wrong usage exits with SystemExit(2) as argparse does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows only ASCII shows \xe9 for an e with an accent
            stream.reconfigure(errors="backslashreplace")
    args, module = parse(sys.argv[1:] if argv is None else argv)
    args.stdout = sys.stdout
    guard = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    try:
        with guard, logging_to(args):
            return int(module.run(args))
    except SvdError as error:
        return fail(args, str(error), type(error), exit_code(error))
    except KeyboardInterrupt:
        again = "; the same command with --resume continues" if hasattr(args, "resume") else ""
        print(f"nxdi-svd {args.command}: interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our stdout has gone
        silence(args.stdout)
        return 1
    except Exception as error:
        said = boundary.sentence(error)
        if not said or args.log_level == "debug":
            raise
        return fail(args, said, type(error), boundary.exit_code(error))


def exit_code(error: SvdError) -> int:
    """3 for a missing extra, 2 for wrong usage, 1 for the rest."""
    return 3 if isinstance(error, MissingExtraError) else 2 if isinstance(error, RecipeError) else 1


def fail(args: argparse.Namespace, said: str, kind: type[Exception], code: int) -> int:
    """Report an error on stderr, and as the JSON object with --json, as far as they can be written to."""
    with contextlib.suppress(OSError):
        print(f"nxdi-svd {args.command}: error: {said}", file=sys.stderr)
    if args.json:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": said, "type": kind.__name__, "exit_code": code}), file=args.stdout, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
