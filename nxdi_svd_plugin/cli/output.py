"""What every subcommand shares: the global options, where its result goes, and logging."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nxdi_svd_plugin.checkpoint.atomic import json_text
from nxdi_svd_plugin.errors import RecipeError

LEVELS = ("debug", "info", "warning", "error")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add --json, --log-level, --log-file and --quiet."""
    group = parser.add_argument_group("output and logging")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout; everything else on stderr")
    group.add_argument("--log-level", choices=LEVELS, default="info", help="least severe message shown (default: info)")
    group.add_argument("--log-file", metavar="FILE", help="append the log to FILE too")
    group.add_argument("--quiet", action="store_true", help="no progress, and only errors in the log")


def emit(args: argparse.Namespace, payload: Mapping[str, Any], text: str) -> None:
    """Print the result of a command on stdout: `payload` as JSON with --json, else `text`.

    Raises:
        NotFiniteError: NaN or infinity in the result.
    """
    as_json = json_text(dict(payload))
    print(as_json if args.json else text, file=args.stdout)


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
            handlers.append(logging.FileHandler(args.log_file))
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
