"""The paper's form: W' = U V, two factors of equal row and column norms (section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def planned(self, rank: int, groups: int = 1) -> LowRank:
        """No pivots."""
        return LowRank(groups * rank, (), groups)

    def fits(self, rank: int, m: int, n: int, block: int) -> bool:
        """Any rank up to the full one."""
        return rank <= min(m, n)

    def store(self, truncated: Iterable[tuple[str, Sequence[Truncation]]], part: int, block: int) -> Stored:
        """The truncated factors, split, group beside group."""
        projections, factors = {}, {}
        for name, groups in truncated:
            projections[name], factors[name] = self.planned(len(groups[0].far), len(groups)), _split(groups)
            del groups  # before the next projection's are made
        return Stored(projections, factors, None, {name: {} for name in projections})


def _split(groups: Sequence[Truncation]) -> tuple[Tensor, Tensor]:
    import torch

    near, far = zip(*(_one(t) for t in groups), strict=True)
    return torch.cat(near, 1), torch.cat(far, 1)


def _one(t: Truncation) -> tuple[Tensor, Tensor]:
    split = t.split
    return (t.near, t.far) if split is None else (t.near / split, t.far * split[:, None])


FORM: Form = Pair()
