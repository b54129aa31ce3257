"""The paper's form: W' = U V, two factors of equal row and column norms (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nxdi_svd_plugin.compress.forms import Form, Stored, Truncation
from nxdi_svd_plugin.stored.projection import LowRank

if TYPE_CHECKING:
    from torch import Tensor


class Pair:
    """r (m + n) numbers for rank r."""

    def cost(self, m: int, n: int, rank: float) -> float:
        """Eq. 4's P' of a pair."""
        return rank * (m + n)

    def planned(self, rank: int) -> LowRank:
        """No pivots."""
        return LowRank(rank)

    def fits(self, rank: int, m: int, n: int, block: int) -> bool:
        """Any rank up to the full one."""
        return rank <= min(m, n)

    def store(self, truncated: Mapping[str, Truncation], width: int, block: int) -> Stored:
        """The truncated factors, split."""
        return Stored(
            {name: LowRank(t.near.shape[1]) for name, t in truncated.items()},
            {name: _split(t) for name, t in truncated.items()},
            None,
            {name: {} for name in truncated},
        )


def _split(t: Truncation) -> tuple[Tensor, Tensor]:
    return (t.near, t.far) if t.split is None else (t.near / t.split, t.far * t.split[:, None])


FORM: Form = Pair()
