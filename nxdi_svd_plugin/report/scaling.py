"""How the predicted losses of a compression were brought to one scale, as report.json keeps it and as it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.matrix import MatrixRecord

LOW_RANK, DROP = "low_rank", "drop"
KINDS = (LOW_RANK, DROP)
"""Kinds of changes of a layer: projections truncated, neurons dropped."""
Loss = tuple[int, float, float]
"""Layer, and its loss in nats per token: predicted, scaled."""


@dataclass(frozen=True)
class Trial:
    """One layer changed alone in one way.

    rank: of all groups, of the projections that the recipe leaves free; width: neurons that stay. predicted, measured:
    nats per token that the change was expected to cost, and KL(dense || changed) on the text. scale: what the expected
    losses of this kind of change in this layer were multiplied by (compress/plan/scaling.py).
    Raises:
        CheckpointError: a kind of change that nobody knows, or without what it is changed to.
    """

    layer: int
    kind: str
    predicted: float
    measured: float
    scale: float
    rank: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.rank if self.kind == LOW_RANK else self.width) is None:
            raise CheckpointError(
                f"a trial of layer {self.layer} is of kind {self.kind!r}, rank {self.rank}, width {self.width}; "
                f"expected {LOW_RANK} with a rank or {DROP} with a width"
            )


@dataclass(frozen=True)
class Scaling:
    """The text by name and SHA-256, its windows, tokens in each and in all, and what was measured on it."""

    text: str
    sha256: str
    samples: int
    length: int
    tokens: int
    trials: tuple[Trial, ...]

    def scale(self, layer: int, kind: str) -> float:
        """Of the losses of a kind of change in a layer; 1 where that was not tried."""
        return next((trial.scale for trial in self.trials if (trial.layer, trial.kind) == (layer, kind)), 1.0)

    def losses(self, matrices: Iterable[MatrixRecord]) -> list[Loss]:
        """Of every layer as it was stored."""
        found: dict[int, tuple[float, float]] = {}
        for record in matrices:
            low, drop = record.predicted_loss or 0.0, record.drop_loss or 0.0
            predicted, scaled = found.get(record.layer, (0.0, 0.0))
            more = low * self.scale(record.layer, LOW_RANK) + drop * self.scale(record.layer, DROP)
            found[record.layer] = predicted + low + drop, scaled + more
        return [(layer, *losses) for layer, losses in sorted(found.items())]


HEAD = (
    "layer",
    "predicted",
    "scaled",
    "low rank tried: predicted",
    "measured",
    "dropping tried: predicted",
    "measured",
)


def rows(scaling: Scaling, losses: Iterable[Loss]) -> list[list[str]]:
    """One row a layer under HEAD, nats per token."""
    tried = {(trial.layer, trial.kind): (trial.predicted, trial.measured) for trial in scaling.trials}
    return [
        [str(layer), *(f"{value:.3g}" for value in both), *(c for kind in KINDS for c in _pair(tried, layer, kind))]
        for layer, *both in losses
    ]


def _pair(tried: dict[tuple[int, str], tuple[float, float]], layer: int, kind: str) -> list[str]:
    return [f"{value:.3g}" for value in tried[layer, kind]] if (layer, kind) in tried else ["", ""]


def sums(scaling: Scaling, losses: Iterable[Loss]) -> str:
    """One sentence on the whole model."""
    _, predicted, scaled = (sum(column) for column in zip(*losses, strict=True))
    return (
        f"losses of all layers: predicted {predicted:.3g}, scaled {scaled:.3g} nats per token, by what each layer "
        f"changed alone costs on {scaling.tokens} tokens of {scaling.text}"
    )
