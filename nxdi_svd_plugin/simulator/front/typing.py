"""`neuronxcc.nki.typing`: tensor placeholders and annotations."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import missing_api

mutable = "mutable"


class TensorSpec:
    """Shape and dtype of a tensor without its values."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)

    def __repr__(self) -> str:
        return f"TensorSpec({list(self.shape)}, {self.dtype})"


class _Tensor:
    """`tensor[[shape], dtype]` is a placeholder; every other subscript is an annotation."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], (list, tuple)):
            return TensorSpec(*key)
        return Any


tensor = _Tensor()
mutable_tensor = scalar = Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.typing", name)
