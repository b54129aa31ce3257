"""The numpy functions behind NKI operators: unary (activations), binary (ALU) and reductions.

All take and return float32 or integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.dtypes import Array


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3))))


UNARY: dict[str, Callable[[Array], Array]] = {
    "copy": lambda x: x,
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "exp": np.exp,
    "floor": np.floor,
    "gelu_apprx_tanh": _gelu_tanh,
    "gelu_apprx_sigmoid": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "invert": np.invert,
    "log": np.log,
    "logical_not": lambda x: x == 0,
    "negative": np.negative,
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * _sigmoid(x),
    "sin": np.sin,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
}

EXACT = {"copy", "abs", "ceil", "floor", "invert", "logical_not", "negative", "relu", "sign", "square", "trunc"}
"""Functions that the Scalar Engine needs no approximation for; it has piecewise polynomials for the others."""

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "fmod": np.fmod,
    "mod": np.mod,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
}

COMPARISONS = {
    "equal",
    "not_equal",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
}
BITVEC = {"bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift", "invert"}
ALIASES = {
    "true_divide": "divide",
    "amax": "max",
    "amin": "min",
    "absolute": "abs",
    "bitwise_invert": "invert",
    "bitwise_not": "invert",
}

REDUCE: dict[str, Callable[..., Any]] = {
    "add": np.sum,
    "sum": np.sum,
    "multiply": np.prod,
    "prod": np.prod,
    "maximum": np.max,
    "max": np.max,
    "minimum": np.min,
    "min": np.min,
    "mean": np.mean,
    "all": np.all,
    "logical_and": np.all,
    "logical_or": np.any,
}


def op_name(op: Any, table: dict[str, Any], api: str) -> str:
    """The table's name for an operator, given as a function of numpy or nki.language or by name; raises if none."""
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    name = ALIASES.get(name, name)
    if name not in table:
        fail(f"{api} does not take the operator {name}; it takes {', '.join(sorted(table))}")
    return name


def as_math(values: Array) -> Array:
    """Engine arithmetic is fp32: everything is cast to float32 first."""
    return values.astype(np.float32, copy=False)
