"""The ranks that a model's weights cannot have, as the planning uses them; degenerate.py finds them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nxdi_svd_plugin.stored.projection import DENSE, Dense, Projection

Limits = Mapping[tuple[int, str], int]
"""The largest rank of all groups together that an MLP weight can have, by (layer, projection), where that is less than
full: as many times the smallest of any group as there are groups."""
CELLS = 4  # into which the pivots of gate and up cut the neurons for those of down
NO_LIMITS: Limits = MappingProxyType({})


def within(planned: Projection, limit: int | None, block: int) -> Projection:
    """What is planned, or dense where the weight cannot have that rank.

    The pivots of a group are chosen in whole blocks of up to CELLS cells, each of which may leave all but one column of
    a block over.
    """
    if limit is None or isinstance(planned, Dense):
        return planned
    over = planned.groups * CELLS * (block - 1) if planned.pivots else 0
    return planned if planned.rank + over <= limit else DENSE
