"""What every subcommand shares: the global options, where its result goes, and logging."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from nxdi_svd_plugin.checkpoint.atomic import json_text
from nxdi_svd_plugin.cli.options import expanded
from nxdi_svd_plugin.errors import RecipeError, SvdError

LEVELS = ("debug", "info", "warning", "error")
FLAGS, VALUED = ("--json", "--quiet"), ("--log-level", "--log-file")
"""The options that every command has and that may stand before it: without a value, and with one."""


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add --json, --log-level, --log-file and --quiet."""
    group = parser.add_argument_group("output and logging")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout; everything else on stderr")
    group.add_argument(
        "--log-level", choices=LEVELS, default="info", help="least severe message shown; debug: tracebacks too (info)"
    )
    group.add_argument("--log-file", type=expanded, metavar="FILE", help="append the log to FILE too")
    group.add_argument("--quiet", action="store_true", help="no progress, and only errors in the log")


def emit(args: argparse.Namespace, payload: Mapping[str, Any], text: str) -> None:
    """Print the result of a command on stdout: `payload` as JSON with --json, else `text`.

    Raises:
        NotFiniteError: NaN or infinity in the result.
        SvdError: stdout is closed or cannot be written to.
        BrokenPipeError: its reader has gone.
    """
    as_json = json_text(dict(payload))
    if args.stdout is None:
        raise SvdError("the command is done, but its result cannot be printed: standard output is closed")
    try:
        print(as_json if args.json else text, file=args.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(args.stdout)
        raise SvdError(f"the command is done, but its result cannot be printed ({error.strerror})") from error


def silence(stream: TextIO) -> None:
    """Send what is left in a stream's buffer nowhere: Python would complain at exit once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def logging_to(args: argparse.Namespace) -> Iterator[None]:
    """Send the plugin's log to stderr (and --log-file) while a command runs.

    Raises:
        RecipeError: the log file cannot be opened.
    """
    logger = logging.getLogger("nxdi_svd_plugin")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if args.log_file:
        try:
            handlers.append(logging.FileHandler(args.log_file, encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"--log-file {args.log_file} cannot be opened: {error.strerror}") from error
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    before = logger.level
    logger.setLevel("ERROR" if args.quiet else args.log_level.upper())
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
