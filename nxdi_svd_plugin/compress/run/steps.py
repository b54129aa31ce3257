"""A compression as a list of steps, each of which leaves its result on disk.

    embed, forward 0 ... n-1, head, backward n-1 / spectra n-1 ... backward 0 / spectra 0, ranks, copy, factor 0 ... n-1

An objective without gradients has no head and no backward; uniform ranks need no step. Where losses are brought to one
scale, scale-embed, scale-layer 0 ... n-1 and scale-head come before the ranks. The paper's one pass is the same
list in another order: copy first, then forward i, spectra i and factor i, layer by layer. Where several processes run,
spectra and factor take as many layers as there are processes, one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nxdi_svd_plugin.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """One step. kind: what is done, a key of run.WORK. layers: with which layers."""

    kind: str
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """`kind`, and the layers it is done with."""
        return " ".join([self.kind, *map(str, self.layers)])


def schedule(recipe: Recipe, layers: int, processes: int) -> list[Step]:
    """The steps of a recipe for a model of `layers` layers."""
    chunks = [tuple(range(layers))[i : i + processes] for i in range(0, layers, processes)]
    if recipe.is_paper:
        return [Step("embed"), Step("copy"), *(step for chunk in chunks for step in _one_pass(chunk))]
    scales = [Step("scale-embed"), *(Step("scale-layer", (i,)) for i in range(layers)), Step("scale-head")]
    ranks = [*(scales if recipe.scale else []), Step("ranks")] if recipe.allocation == "global" else []
    factors = [Step("factor", chunk) for chunk in chunks]
    return [Step("embed"), *_statistics(recipe, chunks), *ranks, Step("copy"), *factors]


def _one_pass(chunk: tuple[int, ...]) -> Iterator[Step]:
    yield from (Step("forward", (i,)) for i in chunk)
    yield Step("spectra", chunk)
    yield Step("factor", chunk)


def _statistics(recipe: Recipe, chunks: list[tuple[int, ...]]) -> Iterator[Step]:
    """Up to the spectra of all layers."""
    if not recipe.differentiates:
        for chunk in chunks:
            yield from (Step("forward", (i,)) for i in chunk)
            yield Step("spectra", chunk)
        return
    yield from (Step("forward", (i,)) for chunk in chunks for i in chunk)
    yield Step("head")
    for chunk in reversed(chunks):
        yield from (Step("backward", (i,)) for i in reversed(chunk))
        yield Step("spectra", chunk)
