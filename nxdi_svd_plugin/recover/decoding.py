"""Attention of one new token over the cache, without copying the cache for each query head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"


@contextmanager
def shared_heads() -> Iterator[None]:
    """While it lasts, transformers' `sdpa` attention takes one token's query heads as rows over their shared keys.

    transformers 5.23 does that itself; 4.51 to 4.57 copy keys and values for every query head, at every token.
    """
    usual = ALL_ATTENTION_FUNCTIONS[SDPA]
    ALL_ATTENTION_FUNCTIONS[SDPA] = over_shared(usual)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[SDPA] = usual


def over_shared(usual: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function like `usual`, which it calls for more than one token.

    query [batch, heads, 1, d], key and value [batch, groups, length, d]; head h reads group h // (heads / groups), so
    the heads of a group are rows [batch, groups, heads / groups, d] of one attention. Returns [batch, 1, heads, d].
    """

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        batch, heads, tokens, size = query.shape
        groups, length = key.shape[1:3]
        if tokens != 1:
            return usual(module, query, key, value, attention_mask, **options)
        mask = None if attention_mask is None else attention_mask[..., :length]
        rows = query.reshape(batch, groups, heads // groups, size)
        found = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=options.get("scaling"))
        return found.reshape(batch, 1, heads, size), None

    return attention
