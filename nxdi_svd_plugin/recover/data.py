"""Training text for recovery as windows of tokens; texts/ has what a file may be.

Documents are joined with the end-of-text token and cut into windows of equal length, so a long document fills several
windows and short ones share one: nothing is padded and nothing but the tail of the last window is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.texts import read_text


@dataclass(frozen=True)
class Windows:
    """Tokens [windows, length] of one file, and what it was: SHA-256 of the bytes, documents read, documents empty."""

    tokens: torch.Tensor
    sha256: str
    documents: int
    empty: int


def load_windows(path: Path, tokenizer: Any, length: int, limit: int | None = None) -> Windows:
    """Windows of `length` tokens from the start of a file; reading stops after `limit` windows.

    Raises:
        CalibrationError: unreadable, not UTF-8, no JSON, wrong columns, or less text than one window.
    """
    source = read_text(str(path))
    pieces, count, documents, empty = [], 0, 0, 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in source.documents(tokenizer):
        documents += 1
        if not text.strip():
            empty += 1
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
        pieces.append(torch.tensor(ids, dtype=torch.long))
        count += len(ids)
        if limit is not None and count >= limit * length:
            break
    windows = count // length
    if windows == 0:
        raise CalibrationError(
            f"{path} has {count} tokens in {documents} documents ({empty} empty); one window needs {length}. "
            "Give more text or a smaller --window"
        )
    windows = windows if limit is None else min(windows, limit)
    return Windows(torch.cat(pieces)[: windows * length].view(windows, length), source.sha256, documents, empty)
