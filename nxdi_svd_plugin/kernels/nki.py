"""The single place that decides where `nki` comes from: the Neuron SDK's `neuronxcc`, or this package's simulator.

`neuronxcc` is used if it imports and brings `neuronxcc.nki` (the PyPI package of that name is a placeholder and does
not); the environment variable NXDI_SVD_NKI=simulator or =neuronxcc forces the choice. `SOURCE` says which one it is.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nxdi_svd_plugin.errors import KernelError

VARIABLE = "NXDI_SVD_NKI"


def _neuronxcc() -> tuple[ModuleType, ModuleType, ModuleType] | None:
    try:
        modules = [importlib.import_module(f"neuronxcc.nki{part}") for part in ("", ".language", ".isa")]
    except ImportError:
        return None
    return modules[0], modules[1], modules[2]


def _simulator() -> tuple[ModuleType, ModuleType, ModuleType]:
    from nxdi_svd_plugin.simulator.front import isa, language
    from nxdi_svd_plugin.simulator.front.nki_api import nki

    return nki, language, isa


def _choose(wanted: str) -> tuple[str, tuple[ModuleType, ModuleType, ModuleType]]:
    """The name and the modules (nki, language, isa) of the source that `wanted` asks for; "" takes what is there."""
    if wanted not in ("", "simulator", "neuronxcc"):
        raise KernelError(f"{VARIABLE}={wanted} is unknown; use simulator or neuronxcc")
    real = None if wanted == "simulator" else _neuronxcc()
    if real is not None:
        return "neuronxcc", real
    if wanted == "neuronxcc":
        raise KernelError(
            f"{VARIABLE}=neuronxcc, but neuronxcc.nki does not import; install the Neuron SDK (2.26 to 2.28 for trn1) "
            "or unset the variable to use the simulator"
        )
    return "simulator", _simulator()


SOURCE, (nki, nl, nisa) = _choose(os.environ.get(VARIABLE, ""))


def jit(function: Callable[..., Any]) -> Any:
    """`nki.jit` of the chosen source; `raw` gives the plain function back."""
    kernel = nki.jit(function)
    _RAW[id(kernel)] = (kernel, function)
    return kernel


def raw(kernel: Any) -> Callable[..., Any]:
    """The undecorated function of one of this package's kernels, for `neuronxcc.nki.jit(raw(kernel), mode=...)`."""
    if id(kernel) not in _RAW:
        raise KernelError(f"{kernel!r} is not a kernel of nxdi_svd_plugin.kernels")
    return _RAW[id(kernel)][1]


_RAW: dict[int, tuple[Any, Callable[..., Any]]] = {}
