"""The numpy functions behind NKI operators: unary (activations), binary (ALU) and reductions.

All take and return float32 or integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.dtypes import Array


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3))))


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _erf_dx(x: Array) -> Array:
    return np.asarray(np.float32(2 / math.sqrt(math.pi)) * np.exp(-x * x))


def _gelu(x: Array) -> Array:
    return np.asarray(x * (1 + _erf(x * np.float32(math.sqrt(0.5)))) / 2)


def _gelu_dx(x: Array) -> Array:
    half = x * np.float32(math.sqrt(0.5))
    return np.asarray((1 + _erf(half) + half * _erf_dx(half)) / 2)


def _silu_dx(x: Array) -> Array:
    return np.asarray(_sigmoid(x) * (1 + x * (1 - _sigmoid(x))))


UNARY: dict[str, Callable[[Array], Array]] = {
    "copy": lambda x: x,
    "abs": np.abs,
    "arctan": np.arctan,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": _erf,
    "erf_dx": _erf_dx,
    "exp": np.exp,
    "floor": np.floor,
    "gelu": _gelu,
    "gelu_apprx_tanh": _gelu_tanh,
    "gelu_apprx_sigmoid": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "gelu_dx": _gelu_dx,
    "log": np.log,
    "logical_not": lambda x: x == 0,
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "negative": np.negative,
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * _sigmoid(x),
    "silu_dx": _silu_dx,
    "sin": np.sin,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
}

EXACT = {"copy", "abs", "ceil", "floor", "logical_not", "negative", "relu", "sign", "square", "trunc"}
"""Functions that the Scalar Engine needs no approximation for; it has piecewise polynomials for the others."""


def _right_shift(x: Array, y: Array) -> Array:
    """Of what is not negative: the table of ALU operators says logical shift, the page of nl.right_shift numpy's."""
    if (x < 0).any():
        fail("right_shift of a negative number: NKI's pages do not agree on what that is; use an unsigned type")
    return np.asarray(np.right_shift(x, y))


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
    "right_shift": _right_shift,
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
BITVEC = {"bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift"}
ARITHMETIC = {name: function for name, function in BINARY.items() if name not in BITVEC}
ALIASES = {
    "true_divide": "divide",
    "amax": "max",
    "amin": "min",
    "absolute": "abs",
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
