"""What the kernels compute, in plain numpy: float64 for the truth, low precision for the tolerance.

The plain factors u [inputs, R] and v [R, outputs] are taken, not packed ones.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def silu(x: Array) -> Array:
    """x · sigmoid(x), without overflow."""
    gated: Array = x * np.exp(-np.logaddexp(0.0, -x))
    return gated


def xuv(x: Array, u: Array, v: Array, transposed_output: bool = False, dtype: Any = None) -> Array:
    """X·U·V, or its transpose. With `dtype`, every product is rounded to it, as a chain of plain matmuls would."""
    y: Array = _matmul(_matmul(x, u, dtype), v, dtype)
    return np.swapaxes(y, 0, 1) if transposed_output else y


def up_gate(x: Array, u_gate: Array, v_gate: Array, u_up: Array, v_up: Array, dtype: Any = None) -> Array:
    """(silu(X·U_gate·V_gate) * (X·U_up·V_up))ᵀ, [I, S]. With `dtype`, every step is rounded to it."""
    gate = _round(silu(xuv(x, u_gate, v_gate, dtype=dtype).astype(np.float64)), dtype)
    up = xuv(x, u_up, v_up, dtype=dtype)
    return np.swapaxes(_round(gate.astype(np.float64) * up.astype(np.float64), dtype), 0, 1)


def down(h_t: Array, u: Array, v: Array, dtype: Any = None) -> Array:
    """Hᵀᵀ·U·V, [S, H], from `h_t` [I, S]."""
    return xuv(h_t.T, u, v, dtype=dtype)


def mlp(
    x: Array,
    u_gate: Array,
    v_gate: Array,
    u_up: Array,
    v_up: Array,
    u_down: Array,
    v_down: Array,
    dtype: Any = None,
) -> Array:
    """The whole MLP, [S, H]: `down` of `up_gate`."""
    return down(up_gate(x, u_gate, v_gate, u_up, v_up, dtype=dtype), u_down, v_down, dtype=dtype)


def _round(x: Array, dtype: Any) -> Array:
    rounded: Array = x if dtype is None else x.astype(dtype)
    return rounded


def _matmul(a: Array, b: Array, dtype: Any) -> Array:
    exact: Any = np.float64 if dtype is None else np.float32
    return _round(a.astype(exact) @ b.astype(exact), dtype)
