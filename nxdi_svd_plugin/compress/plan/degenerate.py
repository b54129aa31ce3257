"""Weights of zeros, of pruned or repeated neurons: found in the first read, never given a rank that they do not have.

An interpolation needs as many independent columns as its rank. A matrix has at most as many as it has rows, and as it
has columns, that are not zero; and fewer where neurons are repeated, which a sample of them shows. A weight of low rank
up to its rounding needs no such care: its spectrum says so, and the rounding leaves columns to choose from.

Every group of neurons is a matrix of its own, and all have the same rank: the smallest that any of them can have.
"""

from __future__ import annotations

import logging

import torch

from nxdi_svd_plugin.checkpoint.names import mlp_weights
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.plan.limits import Limits
from nxdi_svd_plugin.stored.projection import READS

logger = logging.getLogger(__name__)
SAMPLE = 256  # columns: of neurons that are repeated three times or more, two are among them nearly always
EXACT = 1e-12  # what is smaller, relatively, is float64's rounding and no rank


def survey(reader: Reader, config: SourceConfig, groups: Groups) -> Limits:
    """Read every tensor once.

    Args:
        groups: those of the recipe, of equally many neurons.
    Raises:
        CheckpointError: NaN or an infinity.
    """
    mlp = {weight: (layer, name) for layer in range(config.layers) for name, weight in mlp_weights(layer)}
    limits = {}
    for name, tensor in reader.finite_tensors():
        if name in mlp:
            weight = READS[mlp[name][1]].hidden_first(tensor)
            most = min(rank_limit(weight[:, neurons]) for neurons in groups.slices())
            if most < groups.side:
                limits[mlp[name]] = groups.count * most
    return limits


def rank_limit(weight: torch.Tensor) -> int:
    """The largest rank that a matrix [H, n] can have: min(H, n), unless a sample shows zeros or repeated columns.

    Only then the whole matrix is looked at: what is not zero bounds the rank, and where a sample of that is dependent,
    as many random combinations of its columns as there can be have the rank of the whole with probability one.
    """
    generator = torch.Generator().manual_seed(0)
    if _independent(_sample(weight, torch.arange(weight.shape[1]), min(weight.shape), generator)):
        return min(weight.shape)
    used = weight != 0
    rows, columns = (torch.nonzero(used.any(axis)).flatten() for axis in (1, 0))
    most = min(len(rows), len(columns))
    if not most or _independent(_sample(weight[rows], columns, most, generator)):
        return most
    mix = torch.randn(weight.shape[1], most, generator=generator, dtype=torch.float64)
    return min(most, int(torch.linalg.matrix_rank(weight.to(torch.float64) @ mix, rtol=EXACT)))


def _sample(weight: torch.Tensor, columns: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Up to SAMPLE of these columns, in float64."""
    chosen = columns[torch.randperm(len(columns), generator=generator)[: min(SAMPLE, most)]]
    return weight[:, chosen].to(torch.float64)


def _independent(columns: torch.Tensor) -> bool:
    """Whether no row is zero and no column a combination of those before it, to the rounding of float64.

    Some of the rows are enough to show that columns are independent.
    """
    if not columns.any(dim=1).all():
        return False
    some = columns[:: max(1, len(columns) // (2 * SAMPLE))]
    sizes = some.norm(dim=0)
    return bool(sizes.all()) and bool(torch.linalg.qr(some / sizes).R.diagonal().abs().min() > EXACT)


def warn(limits: Limits) -> None:
    """Say which weights these are."""
    if limits:
        first = ", ".join(f"{layer}.{name} (rank {most})" for (layer, name), most in list(limits.items())[:3])
        more = f" and {len(limits) - 3} more" if len(limits) > 3 else ""
        logger.warning(
            "zeros or repeated neurons limit the rank of %s%s; these get no larger one, or stay dense", first, more
        )
