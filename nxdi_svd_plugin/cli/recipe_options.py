"""The flags that make or change a recipe, the same for plan and compress."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.options import expanded, number, seed
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import ALLOCATIONS, FACTOR_DTYPES, OBJECTIVES, PRESETS, Recipe, from_yaml, preset

KEYS = {
    "ratio": "ratio",
    "ratio_of": "ratio_of",
    "tp_degree": "tp_degree",
    "block": "block",
    "tau": "tau",
    "dense": "dense",
    "drop": "drop",
    "form": "form",
    "objective": "objective",
    "allocation": "allocation",
    "damping": "damping",
    "refit": "refit",
    "max_patterns": "max_patterns",
    "scale": "scale",
    "dtype": "dtype",
    "shard_size": "shard_size",
    "calibration": "calibration.text",
    "samples": "calibration.samples",
    "length": "calibration.length",
    "seed": "calibration.seed",
}
"""Recipe key of each flag."""


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and one flag for every recipe key."""
    group = parser.add_argument_group("recipe (flags override the file)")
    group.add_argument("--recipe", type=expanded, metavar="FILE", help="YAML file, default or paper (default: default)")
    group.add_argument("--ratio", type=number, help="share of the parameters to save, in (0, 1) (default: 0.10)")
    group.add_argument("--ratio-of", choices=("mlp", "model"), help="what the ratio is a share of (default: mlp)")
    group.add_argument("--tp-degree", type=int, metavar="N", help="cores to serve on: groups of neurons (2; paper: 1)")
    group.add_argument("--block", type=int, help="ranks are multiples of it in every group (default: 128)")
    group.add_argument("--tau", type=number, help="rounding of Eq. 5 (allocation uniform): 0.5 nearest, 1 down (0.5)")
    group.add_argument(
        "--rank",
        action="append",
        metavar="SELECTOR=R",
        help="rank of all groups, e.g. down_proj=384, 0.up_proj=512",
    )
    group.add_argument("--dense", action="append", metavar="SELECTOR", help="keep dense: 0, down_proj or 3.down_proj")
    switch = argparse.BooleanOptionalAction
    group.add_argument("--drop", action=switch, help="also drop neurons (default: from ratio 0.15 on)")
    group.add_argument("--form", help="of a low-rank projection: pair or interpolative (default: interpolative)")
    group.add_argument("--objective", choices=OBJECTIVES, help="what changes least (default: two_sided)")
    group.add_argument("--allocation", choices=ALLOCATIONS, help="of the ranks (default: global)")
    group.add_argument("--damping", type=number, help="relative ridge of the two-sided objectives (default: 0.1)")
    group.add_argument("--refit", action=switch, help="fit down again behind the compressed layers (default: yes)")
    group.add_argument("--max-patterns", type=int, help="most different layers, 0: no limit (default: 0)")
    group.add_argument(
        "--scale", type=expanded, metavar="FILE", help="measure losses on it, builtin-mixed (default: no)"
    )
    group.add_argument("--dtype", choices=FACTOR_DTYPES, help="of the factors (default: source)")
    group.add_argument("--shard-size", metavar="SIZE", help="of one output file: 5GB, 500MB, 5GiB (default: 5GB)")
    group.add_argument("--calibration", type=expanded, metavar="FILE", help="text, see docs/inputs.md (builtin)")
    group.add_argument("--samples", type=int, help="calibration windows (default: 56)")
    group.add_argument("--length", type=int, help="tokens in each window (default: 512)")
    group.add_argument("--seed", type=seed, help="which windows of a longer text (default: 0)")


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe file, or the default, with the given flags put over it.

    Raises:
        RecipeError: a bad file, value or combination.
    """
    changes: dict[str, Any] = {
        key: getattr(args, flag) for flag, key in KEYS.items() if getattr(args, flag) is not None
    }
    name = args.recipe or "default"
    recipe = preset(name) if name in PRESETS else from_yaml(name)
    if args.rank:
        changes["ranks"] = {**recipe.ranks, **dict(_rank(entry) for entry in args.rank)}
    return recipe.with_changes(changes)


def _rank(entry: str) -> tuple[str, int]:
    selector, equals, rank = entry.partition("=")
    if not equals or not (rank.isascii() and rank.isdigit()):
        raise RecipeError(f"--rank {entry!r}; expected SELECTOR=R such as down_proj=384")
    return selector, int(rank)
