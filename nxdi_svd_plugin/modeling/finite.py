"""NaN and infinity in a model's logits, and token ids without an embedding, are errors wherever logits are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nxdi_svd_plugin.errors import CheckpointError, NotFiniteError


@contextmanager
def finite_logits(model: Any) -> Iterator[None]:
    """While it is open, a forward pass of `model` whose logits are not all finite raises.

    Raises:
        NotFiniteError: names the model, its dtype and how many tokens are concerned. CheckpointError: a token id beyond
            the embeddings.
    """
    name, embeddings = model.name_or_path or "the model", model.get_input_embeddings().num_embeddings
    before = model.register_forward_pre_hook(
        lambda _, args, named: check_ids(name, embeddings, args[0] if args else named.get("input_ids")),
        with_kwargs=True,
    )
    hook = model.register_forward_hook(lambda _, __, output: check_logits(model, output.logits))
    try:
        yield
    finally:
        before.remove()
        hook.remove()


def check_ids(model: Any, embeddings: int, ids: torch.Tensor | None) -> None:
    """Raise for a token id that a model has no embedding for: the tokenizer belongs to another model.

    Args:
        model: what to call it: its directory.
    Raises:
        CheckpointError: names both numbers.
    """
    if ids is None or not ids.numel():
        return
    if (largest := int(ids.max())) >= embeddings:
        raise CheckpointError(
            f"the tokenizer of {model} gives id {largest}, the model has {embeddings} embeddings; copy the model's own "
            "tokenizer into the directory"
        )


def check_logits(model: Any, logits: torch.Tensor) -> None:
    """Raise for logits [..., vocabulary] of `model` that are not all finite.

    Raises:
        NotFiniteError: as `finite_logits`.
    """
    if not logits.numel() or all(torch.isfinite(bound) for bound in torch.aminmax(logits)):
        return
    good = torch.isfinite(logits).all(-1)
    dtype = str(logits.dtype).removeprefix("torch.")
    advice = "its weights are damaged or too large" if dtype == "float32" else "try --dtype float32"
    raise NotFiniteError(
        f"the logits of {model.name_or_path or 'the model'} are NaN or infinite at {int((~good).sum())} of "
        f"{good.numel()} tokens in {dtype}: {advice}"
    )
