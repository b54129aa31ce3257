"""Perplexity of a causal model on one text: exp of the mean negative log-likelihood of its tokens, in windows."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from nxdi_svd_plugin.errors import CalibrationError, NotFiniteError, RecipeError
from nxdi_svd_plugin.modeling.finite import finite_logits
from nxdi_svd_plugin.texts import Text

WINDOW = 1024
LARGEST = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    nll: mean negative log-likelihood per scored token, in nats; perplexity = exp(nll).
    tokens: how many were scored: all but the first of the text and, with stride = window, of each window.
    """

    perplexity: float
    nll: float
    tokens: int
    window: int
    stride: int
    dtype: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def token_ids(tokenizer: Any, text: Text | str, max_tokens: int | None = None) -> torch.Tensor:
    """The text's token ids [tokens], without special tokens, cut after `max_tokens`.

    Raises:
        CalibrationError: fewer than two tokens.
    """
    source = Text("text", content=text) if isinstance(text, str) else text
    ids = source.token_ids(tokenizer, max_tokens)[:max_tokens]
    if len(ids) < 2:
        raise CalibrationError(f"the text has {len(ids)} tokens; perplexity needs at least 2: give a longer text")
    return torch.tensor(ids, dtype=torch.long)


def spans(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window: positions first..end-1 are scored, given those from begin on.

    Windows start every `stride` tokens and a token is scored once, in the first window that predicts it. With stride =
    window, windows share nothing and the first token of each is not scored.
    """
    scored = 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        first = max(scored, begin + 1)
        if first < end:
            yield begin, first, end
        scored = max(scored, end)
        if end == tokens:
            return


def check_window(model: Any, window: int) -> None:
    """Raises RecipeError for a window that the model cannot take."""
    longest = model.config.max_position_embeddings
    if not 2 <= window <= longest:
        raise RecipeError(f"window is {window}; this model takes 2 to {longest} tokens")


@torch.no_grad()
def measure(
    model: Any, ids: torch.Tensor, window: int = WINDOW, stride: int | None = None, progress: bool = False
) -> Perplexity:
    """Perplexity of `model` on token ids [tokens].

    Args:
        window: tokens the model sees at once; the longest context of a prediction.
        stride: tokens from one window's start to the next's, default `window`. A smaller one gives each token more
            context and costs window / stride times as much.
        progress: show a progress bar on stderr.
    Raises:
        RecipeError: a window the model cannot take, or a stride outside 1 to window.
        NotFiniteError: logits or a perplexity that are no numbers.
    """
    stride = window if stride is None else stride
    check_window(model, window)
    if not 1 <= stride <= window:
        raise RecipeError(f"stride is {stride}; expected 1 to the window, {window}")
    total, count, start = 0.0, 0, time.monotonic()
    with finite_logits(model):
        for begin, first, end in tqdm(list(spans(len(ids), window, stride)), desc="perplexity", disable=not progress):
            logits = model(ids[None, begin:end].to(model.device), use_cache=False).logits[0, first - begin - 1 : -1]
            targets = ids[first:end].to(logits.device)
            total += torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item()
            count += end - first
    nll = total / count
    if nll > LARGEST:
        raise NotFiniteError(
            f"{model.name_or_path or 'the model'} predicts the text with {nll:.4g} nats a token; the perplexity, "
            "e to that power, is no number: the weights are damaged or too large"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return Perplexity(math.exp(nll), nll, count, window, stride, dtype, time.monotonic() - start)
