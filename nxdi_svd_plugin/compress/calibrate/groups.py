"""The equal slices of the intermediate neurons that are factored on their own.

A group of a projection is a matrix between the hidden side H and I / g neurons. Its statistics, Gram matrix and
eigendecomposition are on the smaller of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.recipe import Recipe


@dataclass(frozen=True)
class Groups:
    """How the intermediate side is cut.

    count: g, which divides `intermediate`. hidden_sums: the sums are on the hidden side even where a group has fewer
    neurons, as they were made before others were dropped.
    """

    count: int
    hidden: int
    intermediate: int
    hidden_sums: bool = False

    @classmethod
    def of(cls, config: SourceConfig, recipe: Recipe) -> Groups:
        """Those of a recipe for a model."""
        return cls(recipe.tp_degree, config.hidden, config.intermediate)

    @property
    def part(self) -> int:
        """Neurons of a group."""
        return self.intermediate // self.count

    @property
    def narrow(self) -> bool:
        """Whether the sums are on the neurons' side: a group has fewer of them than the model hidden dimensions."""
        return self.part < self.hidden and not self.hidden_sums

    @property
    def side(self) -> int:
        """The smaller side of a group, its full rank."""
        return min(self.hidden, self.part)

    def slices(self) -> Iterator[slice]:
        """The neurons of every group."""
        return (slice(start, start + self.part) for start in range(0, self.intermediate, self.part))
