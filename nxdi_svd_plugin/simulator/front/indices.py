"""Tile indices of `nki.language`: `arange` and `mgrid`."""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import Axis, Expr


def arange(*args: int) -> Expr:
    """A 1-D tile index; give it its axis by `[:, None]` or `[None, :]`."""
    values = range(*args)
    if not len(values):
        fail(f"empty arange{args}")
    return Expr(values[0], {Axis(0, len(values)): values.step} if len(values) > 1 else {}, 1)


class _Grid(tuple[Expr, ...]):
    """mgrid's result: unpack it or use `.p` (partition) and `.x .y .z .w` (free axes)."""

    p = property(lambda self: self[0])
    x = property(lambda self: self[1])
    y = property(lambda self: self[2])
    z = property(lambda self: self[3])
    w = property(lambda self: self[4])


class _MGrid:
    def __getitem__(self, key: Any) -> _Grid:
        slices = key if isinstance(key, tuple) else (key,)
        ndim, found = len(slices), []
        for at, part in enumerate(slices):
            values = range(part.start or 0, part.stop, part.step or 1)
            axis = Axis(ndim - 1 - at, len(values))
            found.append(Expr(values[0], {axis: values.step} if len(values) > 1 else {}, ndim))
        return _Grid(found)


mgrid = _MGrid()
