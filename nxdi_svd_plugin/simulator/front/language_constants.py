"""`neuronxcc.nki.language.constants`: sizes of data types; the alignments have no published values for Trn1."""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.simulator.place import missing_api
from nxdi_svd_plugin.simulator.program.dtypes import as_dtype


def sizeinbytes(dtype: Any) -> int:
    """Bytes of one element."""
    return int(as_dtype(dtype).itemsize)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.language.constants", name)
