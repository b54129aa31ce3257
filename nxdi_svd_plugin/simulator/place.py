"""Where in the kernel we are: file, line and source text for error messages, and the one way to raise them."""

import linecache
import os
import sys
from types import CodeType, FrameType
from typing import NoReturn

from nxdi_svd_plugin.errors import SimulatorError

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


class UnsupportedApiError(SimulatorError, AttributeError):
    """A name of `neuronxcc.nki` that the simulator does not have; also an AttributeError, so that `hasattr` works."""


def own_code(code: CodeType) -> bool:
    """Whether this is code of the simulator."""
    return code.co_filename.startswith(_OWN)


def kernel_frame() -> FrameType:
    """The innermost frame outside the simulator."""
    frame = sys._getframe(1)
    while frame.f_back is not None and own_code(frame.f_code):
        frame = frame.f_back
    return frame


def kernel_place() -> tuple[str, int]:
    """File and line of the innermost frame outside the simulator."""
    frame = kernel_frame()
    return frame.f_code.co_filename, frame.f_lineno


def describe(place: tuple[str, int]) -> str:
    """`name.py:12: source text` of a place."""
    file, line = place
    return f"{os.path.basename(file)}:{line}: {linecache.getline(file, line).strip()}"


def fail(message: str, place: tuple[str, int] | None = None) -> NoReturn:
    """Raise SimulatorError with the message and the kernel line it belongs to."""
    raise SimulatorError(f"{message} [{describe(place or kernel_place())}]")


def missing_api(module: str, name: str) -> NoReturn:
    """Raise for a name that exists in no simulated module."""
    raise UnsupportedApiError(f"{module}.{name} is not simulated [{describe(kernel_place())}]")
