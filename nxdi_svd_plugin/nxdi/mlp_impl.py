"""`mlp_impl`, the option that chooses the MLP: its values and what is said of another one. Imports no NxDI."""

from __future__ import annotations

import difflib

from nxdi_svd_plugin.errors import NxdiError

DENSE, SVD, FUSED = MLP_IMPLS = ("dense", "svd", "svd_fused")
"""NxDI's own MLP (the default), low-rank projections in XLA operations, and in the fused NKI kernels."""


def check_mlp_impl(value: object) -> str:
    """The value of `mlp_impl`; raises NxdiError with a suggestion if it is none of MLP_IMPLS."""
    if value in MLP_IMPLS:
        return str(value)
    close = difflib.get_close_matches(str(value), MLP_IMPLS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise NxdiError(f"mlp_impl={value!r} is unknown; use one of {', '.join(map(repr, MLP_IMPLS))}.{hint}")
