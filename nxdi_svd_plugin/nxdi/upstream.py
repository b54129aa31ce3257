"""Which NxDI is installed: the one place that looks, so that its absence is one clear error."""

from __future__ import annotations

import importlib.util
from importlib import import_module

from nxdi_svd_plugin.errors import MissingExtraError, NxdiError

SUPPORTED = ("0.6", "0.7", "0.8", "0.9")
FUSED = ("0.6", "0.7", "0.8")  # SDK 2.26-2.28; from SDK 2.29 (NxDI 0.9) NKI is a new language that has no Trn1 target
PACKAGE = "neuronx_distributed_inference"


def installed() -> bool:
    """Whether NxDI can be imported (nothing is imported to find out)."""
    return importlib.util.find_spec(PACKAGE) is not None


def require() -> None:
    """Check that a supported NxDI is installed.

    Raises:
        MissingExtraError: NxDI is not installed.
        NxdiError: its version is not one this plugin was tested with.
    """
    if not installed():
        raise MissingExtraError(
            "NxD Inference (neuronx_distributed_inference) is not installed. It comes with the AWS Neuron SDK, for "
            "example in a Neuron DLAMI virtual environment, not from PyPI (see docs/nxdi.md). Compressing, evaluating "
            "and generating with transformers work without it."
        )
    if minor_version() not in SUPPORTED:
        raise NxdiError(
            f"NxD Inference {version()} is installed; this plugin supports {', '.join(SUPPORTED)} (SDK 2.26 to 2.29)"
        )


def version() -> str:
    """NxDI's version, e.g. "0.8.0"."""
    return str(import_module(PACKAGE).__version__)


def minor_version() -> str:
    """NxDI's version up to the minor part, e.g. "0.8"."""
    return ".".join(version().split(".")[:2])
