"""NKI data types, their storage in numpy, rounding and promotion.

Float tensors are held as float32 arrays whose values are exactly representable in the tensor's type: engines compute in
fp32 and round once, when they write. Integers are held as they are. Promotion follows "NKI Type Promotion"
(`nki/api/nki.api.shared.rst`, v2.26.1).
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from nxdi_svd_plugin.simulator.place import fail

Array = npt.NDArray[Any]

TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3": np.dtype(getattr(ml_dtypes, "float8_e4m3", ml_dtypes.float8_e4m3fn)),  # e4m3fn: ml_dtypes before 0.5
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "bool_": np.bool_,
}
"""What `nki.language` calls its data types; the hardware has no others."""
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in TYPES.items()}
FLOATS = [dtype for name, dtype in DTYPES.items() if "float" in name]
INTEGERS = [dtype for name, dtype in DTYPES.items() if "int" in name]
float32, float16, bfloat16, *_ = FLOATS
bool_ = DTYPES["bool_"]


def as_dtype(value: Any) -> np.dtype[Any]:
    """The numpy dtype of anything NKI takes as `dtype=`; raises for types that the hardware does not have."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        fail(f"not a data type: {value!r}")
    if dtype not in DTYPES.values():
        fail(f"{dtype} is not an NKI data type (float32, float16, bfloat16, float8_e4m3/e5m2, (u)int8/16/32, bool)")
    return dtype


def is_float(dtype: np.dtype[Any]) -> bool:
    """True for every floating type, the ml_dtypes ones included."""
    return dtype in FLOATS


def storage(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The numpy type in which values of `dtype` are held."""
    return float32 if is_float(dtype) else dtype


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values as the engine writes them into a tensor of `dtype`, in the storage type."""
    if dtype == float32:
        return values.astype(np.float32, copy=False)
    if is_float(dtype):
        return values.astype(dtype).astype(np.float32)
    if dtype == bool_:
        return values.astype(np.bool_)
    if values.dtype.kind == "f":
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values.astype(np.float64)), info.min, info.max)
    return values.astype(dtype)


def scalar_dtype(value: Any) -> np.dtype[Any]:
    """Type of a Python or numpy scalar: weak scalars are uint8 (bool), int32 and float32."""
    if isinstance(value, bool):
        return np.dtype(np.uint8)
    if isinstance(value, (int, np.int64)):
        return np.dtype(np.int32)
    if isinstance(value, float):
        return float32
    if not isinstance(value, np.generic):
        fail(f"an operand is a tile or a number, found {type(value).__name__}")
    return as_dtype(value.dtype)


def promote(left: np.dtype[Any], right: np.dtype[Any]) -> np.dtype[Any]:
    """Result type of an arithmetic operation on two types."""
    left, right = (np.dtype(np.uint8) if t == bool_ else t for t in (left, right))
    if left == right:
        return left
    if is_float(left) != is_float(right):
        return left if is_float(left) else right
    if not is_float(left):
        widened = np.promote_types(left, right)
        return widened if widened in INTEGERS else float32
    if float32 in (left, right) or {left, right} == {float16, bfloat16}:
        return float32
    wide = [t for t in (left, right) if t.itemsize == 2]
    return wide[0] if wide else bfloat16
