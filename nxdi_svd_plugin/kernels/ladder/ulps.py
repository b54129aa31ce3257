"""How far a result is from the truth, in units in the last place of bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DIGITS = 8
"""Binary digits of a bfloat16's significand, the hidden one included."""


def ulps(got: Array, exact: Array) -> float:
    """The largest |got - exact| in units in the last place of bfloat16; infinite where `got` is not finite.

    The unit is that of the exact value, of values smaller than the root mean square that of the latter: the error of a
    sum follows the size of its terms, so a sum that cancels to nearly nothing has no digits of its own to lose.
    """
    if got.shape != exact.shape:
        raise ValueError(f"got {got.shape}, expected {exact.shape}")
    scale = np.sqrt(np.mean(exact**2))
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), scale or 1.0)))
    apart = np.abs(got.astype(np.float64) - exact) / 2.0 ** (exponent - DIGITS + 1)
    return float(np.max(np.where(np.isfinite(got.astype(np.float64)), apart, np.inf)))
