"""Is a dense directory the model that a compressed one was made from?"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import read_compressed, read_raw
from nxdi_svd_plugin.checkpoint.verify import changed, differing, neuron_order
from nxdi_svd_plugin.errors import CheckpointError

logger = logging.getLogger(__name__)


def check_partner(directory: Path, base: Path) -> None:
    """Refuse to compare a compressed directory with another model than its own; nothing is checked of a dense one.

    The fingerprint that svd_config keeps decides. It changes when the same model is saved again, so where it differs
    the tensors that were not compressed are compared, rounded to the coarser of the two dtypes; with a warning where
    these are the same.

    Raises:
        CheckpointError: `base` is another model, or one of the two cannot be read.
    """
    made_from, found = source(directory), source(base)
    if made_from is None:
        return
    name, fingerprint = made_from
    named = f" ({name})" if name else ""
    if fingerprint and fingerprint == (found[1] if found else Reader(base).fingerprint()):
        return
    faults = other_tensors(directory, base)
    if faults:
        raise CheckpointError(
            f"{base} is not the model that {directory} was made from{named}: {len(faults)} of the tensors that were "
            f"not compressed differ ({faults[0]}); give the model it was made from"
        )
    if fingerprint:
        logger.warning(
            "%s has another fingerprint than the model that %s was made from%s; the tensors that were not "
            "compressed are the same",
            base,
            directory,
            named,
        )


def source(directory: Path) -> tuple[str, str] | None:
    """(name, fingerprint) of the model that a compressed directory was made from, each "" if it does not say; None for
    a dense directory."""
    svd_config = read_raw(directory).get("svd_config")
    if svd_config is None:
        return None
    said = svd_config.get("source") if isinstance(svd_config, dict) else None
    said = said if isinstance(said, dict) else {}
    return str(said.get("name", "")), str(said.get("fingerprint", ""))


def other_tensors(directory: Path, base: Path) -> list[str]:
    """The names that `differing` gives for two directories; where `base` is compressed too, of what both left alone."""
    config = read_compressed(directory)
    order = neuron_order(directory) if source(base) is None else None
    other = Reader(base)
    names = differing(Reader(directory), other, changed(config, other), order, same_values)
    return names if source(base) is None else [name for name in names if ".mlp." not in name]


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, and equal in the dtype of the two that has fewer bits."""
    coarser = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return a.shape == b.shape and torch.equal(a.to(coarser), b.to(coarser))
