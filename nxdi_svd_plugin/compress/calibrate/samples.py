"""Calibration text to token windows."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.errors import CalibrationError
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recipe import DEFAULT_SAMPLES, Calibration
from nxdi_svd_plugin.texts import BUILTIN, Text

POOL = 8  # of a longer text, so many times the tokens that are needed are read to choose from
FEW = 4  # times the hidden size: fewer tokens do not say much about a covariance of H x H

logger = logging.getLogger(__name__)


def tokenize(directory: Path, text: Text, calibration: Calibration) -> torch.Tensor:
    """Token ids [tokens] of a text, or of its start if it is long, by the directory's own tokenizer, no special tokens.

    Raises:
        CheckpointError: the directory has no tokenizer that transformers can load. CalibrationError: no usable text.
    """
    enough = POOL * calibration.samples * calibration.length
    return torch.tensor(text.token_ids(load_tokenizer(directory), enough), dtype=torch.int64)


def windows(ids: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """[samples, length] non-overlapping windows: the first ones if the text just suffices, else a seeded choice in text
    order.

    Raises:
        CalibrationError: the text has fewer tokens than asked for.
    """
    available = len(ids) // calibration.length
    if calibration.text == BUILTIN and calibration.samples == DEFAULT_SAMPLES and 0 < available:
        calibration = dataclasses.replace(calibration, samples=min(DEFAULT_SAMPLES, available))
    if available < calibration.samples:
        raise CalibrationError(
            f"the calibration text has {len(ids)} tokens, {calibration.samples} samples of {calibration.length} need "
            f"{calibration.samples * calibration.length}; give a longer text or fewer samples"
        )
    generator = torch.Generator().manual_seed(calibration.seed)
    chosen = torch.randperm(available, generator=generator)[: calibration.samples].sort().values
    return ids[: available * calibration.length].reshape(available, calibration.length)[chosen]


def warn_of_few(config: SourceConfig, samples: torch.Tensor) -> None:
    """Warn of too few calibration tokens: the statistics of a layer are matrices of H x H."""
    if (tokens := samples.numel()) < FEW * config.hidden:
        logger.warning(
            "%d calibration tokens are few for hidden size %d, and the model may be damaged on other text; give at "
            "least %d, better ten times as many (--samples, --length)",
            tokens,
            config.hidden,
            FEW * config.hidden,
        )
