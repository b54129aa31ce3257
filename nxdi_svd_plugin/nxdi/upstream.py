"""Which NxDI is installed: the one place that looks, so that its absence is one clear error."""

from __future__ import annotations

import importlib.util
from importlib import import_module

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.errors import MissingExtraError, NxdiError

PACKAGE = "neuronx_distributed_inference"


def installed() -> bool:
    """Whether NxDI can be imported (nothing is imported to find out)."""
    return importlib.util.find_spec(PACKAGE) is not None


def sdk() -> versions.Sdk:
    """The row of the support table for the installed NxDI.

    Raises:
        MissingExtraError: NxDI is not installed.
        NxdiError: its version is not in the table.
    """
    if not installed():
        raise MissingExtraError(
            "NxD Inference (neuronx_distributed_inference) is not installed. It comes with the AWS Neuron SDK, for "
            "example in a Neuron DLAMI virtual environment, not from PyPI (see docs/nxdi.md). Compressing, evaluating "
            "and generating with transformers work without it."
        )
    version = str(import_module(PACKAGE).__version__)
    row = versions.sdk_of(version)
    if row is None:
        raise NxdiError(f"NxD Inference {version} is installed; this plugin supports {versions.known_nxdi()}")
    return row
