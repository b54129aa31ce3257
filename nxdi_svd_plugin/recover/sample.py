"""Text that the dense model writes itself, for `recover` to distil it on.

Drawn from the model's own distribution, the text is of every kind that the model was trained on, and the sum over it of
KL(dense || compressed) is an unbiased estimate of how far the two distributions over whole texts are apart: what is
left to learn is what the model itself considers likely. Sequence-level distillation: Kim and Rush 2016,
arXiv:1606.07947; on a model's own samples for calibration: Williams and Aletras 2024, arXiv:2410.17170.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.modeling.finite import finite_logits
from nxdi_svd_plugin.recover.decoding import shared_heads
from nxdi_svd_plugin.texts import Text

LEAST = 16
"""Tokens of the shortest document that is kept: what a window's end cuts off is often less."""


@dataclass(frozen=True)
class Settings:
    """tokens: to draw at least. length: of a sequence, in which several documents may follow each other. batch:
    sequences at once. temperature: of the softmax over the whole vocabulary. seed: of batch 0, one more for each."""

    tokens: int = 65536
    length: int = 512
    batch: int = 64
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"tokens": 1, "length": LEAST, "batch": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        if not self.temperature > 0:
            raise RecipeError(f"temperature is {self.temperature}; expected more than 0, as greedy text repeats itself")


def beginnings(tokenizer: Any, start: int, prompts: Text | None) -> list[list[int]]:
    """Token ids that sequences begin with: `start` alone, or before each line or record of `prompts`.

    Raises:
        RecipeError: there is none but blank ones. CalibrationError: as `Text.documents`.
    """
    if prompts is None:
        return [[start]]
    texts = list(prompts.beginnings(tokenizer))
    if not texts:
        raise RecipeError(f"{prompts.name} holds no beginnings; give one on each line, half a sentence or a paragraph")
    return [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]


def first_token(tokenizer: Any, text: str | None) -> int:
    """The token that documents begin after: `text`, or else the tokenizer's BOS or EOS.

    Raises:
        RecipeError: the text is not one token, or the tokenizer has neither.
    """
    if text is not None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise RecipeError(f"--start {text!r} is {len(ids)} tokens; give one, such as {tokenizer.eos_token!r}")
        return int(ids[0])
    known = (i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None)
    if (start := next(known, None)) is None:
        raise RecipeError("the tokenizer has no BOS and no EOS token; give the token that a document begins after")
    return int(start)


def check_length(model: Any, begun: list[list[int]], settings: Settings) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        RecipeError: says how many it has.
    """
    positions, longest = model.config.max_position_embeddings, max(map(len, begun))
    if settings.length + longest > positions:
        raise RecipeError(
            f"length {settings.length} and {longest} tokens to begin with exceed the model's {positions} positions; "
            "give a smaller length, or shorter prompts"
        )


def documents(model: Any, tokenizer: Any, begun: list[list[int]], settings: Settings) -> Iterator[list[str]]:
    """The documents of one batch after the other, until `settings.tokens` are drawn.

    Batches take `begun`, token ids that all start with what documents begin after, in order and then again.
    `settings.length` tokens are drawn after each: behind the end of a document the next one begins.

    Raises:
        NotFiniteError: logits that are no numbers.
    """
    ends = {begun[0][0], *(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None)}
    rounds = -(-settings.tokens // (settings.length * settings.batch))
    for number in range(rounds):
        torch.manual_seed(settings.seed + number)
        places = range(number * settings.batch, (number + 1) * settings.batch)
        rows = draw(model, [begun[place % len(begun)] for place in places], settings)
        yield [tokenizer.decode(piece) for row in rows for piece in split(row, ends)]


@torch.no_grad()
def draw(model: Any, begun: list[list[int]], settings: Settings) -> list[list[int]]:
    """Each of `begun` and `settings.length` token ids after it, from the whole distribution at a temperature."""
    from transformers import GenerationConfig

    config: Any = GenerationConfig
    model.generation_config = config(do_sample=True, temperature=settings.temperature, top_k=0, top_p=1.0)
    longest = max(map(len, begun))
    padded = [[0] * (longest - len(ids)) + ids for ids in begun]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in begun]
    tokens, attended = (torch.tensor(rows, device=model.device) for rows in (padded, mask))
    with finite_logits(model), shared_heads():
        drawn = model.generate(tokens, attention_mask=attended, max_new_tokens=settings.length)
    return [row[longest - len(ids) :] for row, ids in zip(drawn.tolist(), begun, strict=True)]


def split(row: list[int], ends: set[int]) -> list[list[int]]:
    """The documents of a sequence: what lies between end tokens, but for what is shorter than LEAST."""
    pieces: list[list[int]] = [[]]
    for token in row:
        if token in ends:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [piece for piece in pieces if len(piece) >= LEAST]
