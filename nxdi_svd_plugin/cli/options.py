"""Options that several subcommands have, and their meaning."""

from __future__ import annotations

import argparse

from nxdi_svd_plugin.stored.dtypes import DTYPES


def add_dtype_option(group: argparse._ArgumentGroup) -> None:
    """Add --dtype."""
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="data type to compute in; auto is the one in config.json (bfloat16 is slow on most CPUs)",
    )


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
