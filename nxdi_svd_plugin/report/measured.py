"""What is measured on a compressed directory, or done to it, after the compression, as report.json keeps it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.checkpoint.names import model_name
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.json_object import to_json

READ_SETTINGS = ("method", "steps", "batch", "window", "seed")
"""Those settings of a recovery that cards and reports show."""


@dataclass(frozen=True)
class TextName:
    """A text by its file name and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Row:
    """One score of the dense model (base) and of the compressed one, with standard errors where they are known.

    recovery: share of the base's score that is kept, compressed / base or, where lower is better, base / compressed.
    samples: documents, or tokens of a text. window: tokens a window of a text.
    """

    task: str
    metric: str
    samples: int
    base: float
    base_stderr: float | None
    compressed: float
    compressed_stderr: float | None
    recovery: float | None
    window: int | None = None


@dataclass(frozen=True)
class Score:
    """A perplexity and how it was measured; see evaluate/perplexity.py."""

    model: str
    perplexity: float
    nll: float
    tokens: int
    window: int
    stride: int
    dtype: str
    seconds: float


@dataclass(frozen=True)
class Evaluation(Score):
    """The perplexity on a text, and the dense model's (`base`) on the same tokens if it was measured.

    relative: perplexity / base.perplexity.
    """

    text: TextName
    base: Score | None = None
    relative: float | None = None

    def by_name(self) -> Evaluation:
        """The same with the names of the model directories in place of their paths."""
        base = self.base and replace(self.base, model=model_name(Path(self.base.model)))
        return replace(self, model=model_name(Path(self.model)), base=base)

    def rows(self) -> list[Row]:
        """The pair of both models; nothing without the base."""
        if self.base is None:
            return []
        before, after = self.base.perplexity, self.perplexity
        row = Row(self.text.name, "perplexity", self.tokens, before, None, after, None, before / after, self.window)
        return [row]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(self)


@dataclass(frozen=True)
class Tasks:
    """lm-eval's scores of both models.

    settings: limit, fewshot, dtype, batch, version of lm-eval.
    """

    rows: tuple[Row, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(self)


@dataclass(frozen=True)
class LayerLosses:
    """Nats per token of each layer compressed alone, predicted and measured on a text.

    rank_correlation: Spearman's, over the layers that were compressed; None where fewer than two were.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    rank_correlation: float | None
    tokens: int
    window: int
    text: TextName

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(self)


@dataclass(frozen=True)
class TrainingText:
    """A text that recovery trained on or chose by: windows of `length` tokens; documents read, and empty ones."""

    text: str
    sha256: str
    windows: int
    length: int
    documents: int
    empty: int


@dataclass(frozen=True)
class Change:
    """Validation perplexities: of the input, of the trained factors (None: no number), and of those that the output
    holds."""

    input: float
    trained: float | None
    output: float


@dataclass(frozen=True)
class Step:
    """One evaluation of a recovery; train_loss: mean since the one before. None where there is none or no number."""

    step: int
    train_loss: float | None
    validation_perplexity: float | None
    seconds: float


@dataclass(frozen=True)
class Recovery:
    """How the factors were trained after the compression.

    settings: of recover/settings.py. loss: "next token" or "distillation", from the model `teacher`.
    kept_input: the training did not help and the output holds the input's tensors.
    Raises:
        CheckpointError: no history, or settings without those that are shown.
    """

    settings: dict[str, Any]
    loss: str
    teacher: str | None
    data: TrainingText
    validation: TrainingText
    perplexity: Change
    kept_input: bool
    best_step: int
    history: tuple[Step, ...]
    seconds: float
    device: str

    def __post_init__(self) -> None:
        missing = [name for name in READ_SETTINGS if name not in self.settings]
        if missing or not self.history:
            raise CheckpointError(f"recovery has no {missing[0] if missing else 'history'}")

    @property
    def steps(self) -> int:
        """The last step."""
        return self.history[-1].step

    def summary(self) -> dict[str, Any]:
        """The `recovery` object of svd_config: without history and machine."""
        kept = ("settings", "loss", "teacher", "data", "perplexity", "kept_input")
        return {key: value for key, value in to_json(self).items() if key in kept}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(self)
