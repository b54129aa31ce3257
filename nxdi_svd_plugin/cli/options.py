"""Options that several subcommands have, and their meaning."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from nxdi_svd_plugin.stored.dtypes import DTYPES


def add_dtype_option(group: argparse._ArgumentGroup) -> None:
    """Add --dtype."""
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="data type to compute in; auto is the one in config.json (bfloat16 is slow on most CPUs)",
    )


def add_model_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, text: str) -> None:
    """Add MODEL and --model MODEL, which are the same; `place_model` makes one of them."""
    parser.add_argument("word", nargs="?", type=expanded, metavar="MODEL", help=text)
    parser.add_argument("--model", type=expanded, metavar="MODEL", help="the same, by name")


def place_model(args: argparse.Namespace, unknown: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Put the one model directory that was given into `args.model`; exit 2 if it is none or two.

    Returns what is left of `unknown`: before 3.13 argparse takes a MODEL that follows an option for unknown.
    """
    if not hasattr(args, "word"):
        return unknown
    found = [word for word in (args.word, args.model) if word is not None]
    if not found and unknown and unknown[0] and not unknown[0].startswith("-"):
        found, unknown = [expanded(unknown[0])], unknown[1:]
    if not found and not unknown:
        parser.error(f"MODEL is missing: `{parser.prog} MODEL`, the directory of a model")
    if len(found) == 2 and not any(word.startswith("-") for word in unknown):  # else one may be the option's value
        parser.error(f"two models are given, {found[0]} and {found[1]}; give one")
    args.model = found[0] if found else None
    del args.word
    return unknown


def expanded(text: str) -> str:
    """A path with `~` replaced, for argparse: a shell leaves --model=~/x as it is.

    Raises:
        ArgumentTypeError: none, as an unset variable of a shell gives; Python would take it for the current directory.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is a variable not set?")
    return os.path.expanduser(text)


def path(text: str) -> Path:
    """`expanded`, as a Path."""
    return Path(expanded(text))


def number(text: str) -> float:
    """A finite number, for argparse."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def not_negative(text: str) -> int:
    """An integer of at least 0, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def seed(text: str) -> int:
    """A seed that torch takes, for argparse."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value
