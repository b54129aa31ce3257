"""`neuronxcc.nki.compiler`: decorators and directives without meaning here; direct allocation is not simulated."""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.simulator.place import missing_api


def skip_middle_end_transformations(func: Any = None) -> Any:
    """Returns the function."""
    return func if func is not None else (lambda function: function)


force_auto_alloc = skip_middle_end_transformations


def no_reorder() -> None:
    """A loop directive."""


def multi_buffer(factor: int = 2) -> None:
    """A loop directive."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.compiler", name)
