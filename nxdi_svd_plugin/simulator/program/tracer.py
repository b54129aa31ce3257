"""The tracer: collects the program while the kernel function runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail, kernel_frame, kernel_place
from nxdi_svd_plugin.simulator.program.affine import Expr, LoopVar
from nxdi_svd_plugin.simulator.program.dtypes import Array
from nxdi_svd_plugin.simulator.program.program import Alloc, Block, Loop, Storage, View


class Tracer:
    """Collects the program while the kernel function runs. One tracer is current at a time.

    Args:
        strict: refuse what Trn1 lacks; otherwise warn.
        target: `platform_target` of the kernel.
        unrolled: file and line of the loops that an `if` looks into: they are traced with their values.
        grid: launch grid.
        tensor: the class of the views that the kernel handles.
        code: code object of the kernel function, if it has one.
    """

    current: Tracer | None = None

    def __init__(
        self,
        strict: bool,
        target: str,
        unrolled: set[tuple[str, int]],
        grid: tuple[int, ...],
        tensor: type[View],
        code: CodeType | None = None,
    ) -> None:
        self.strict, self.target, self.unrolled, self.grid = strict, target, unrolled, grid
        self.tensor, self.code = tensor, code
        self.top: Block = Block()
        self.block: Block = self.top
        self.grid_vars: list[LoopVar] = []
        self.storages: list[Storage] = []
        self.warnings: list[str] = []

    def __enter__(self) -> Tracer:
        self.outer, Tracer.current = Tracer.current, self
        return self

    def __exit__(self, *exc: object) -> None:
        Tracer.current = self.outer

    def in_helper(self) -> bool:
        """True if the running line belongs to another function than the kernel (not known for callable objects)."""
        return self.code is not None and kernel_frame().f_code is not self.code

    def open_grid(self) -> None:
        """Wrap the kernel into one loop per grid dimension."""
        for size in self.grid:
            loop = Loop("grid", range(size), LoopVar(0, size - 1, 1, ("grid", len(self.grid_vars))))
            self._enter(loop)
            assert loop.var is not None  # noqa: S101 - for the type checker
            self.grid_vars.append(loop.var)

    def close_grid(self) -> None:
        """End of the kernel."""
        for _ in self.grid:
            self._leave(self.block)
        if self.block is not self.top:
            fail("a loop was left by break or return; NKI loops run to their end")

    def _enter(self, loop: Loop) -> Block:
        if not loop.bodies:
            self.block.nodes.append(loop)
        body = Block(loop, self.block)
        loop.bodies.append(body)
        self.block = body
        return body

    def _leave(self, body: Block) -> None:
        if self.block is not body:
            fail("a loop was left by break or return; NKI loops run to their end")
        body.closed = True
        self.block = body.parent or self.top

    def loop(self, kind: str, values: range) -> Iterator[Any]:
        """Trace a loop: yields once with a symbolic index, or once per value if unrolled."""
        site = kernel_place()
        if not len(values):
            return
        if kind == "static" or site in self.unrolled:
            loop = Loop(kind, values, None)
            for value in values:
                body = self._enter(loop)
                yield value if kind == "static" else Expr(value)
                self._leave(body)
            return
        loop = Loop(kind, values, LoopVar(values[0], values[-1], values.step, site))
        body = self._enter(loop)
        yield Expr(0, {loop.var: 1})
        self._leave(body)

    def allocate(self, storage: Storage) -> View:
        """Register a tensor in the block that it belongs to; a view of all of it."""
        self.storages.append(storage)
        # outputs are made before the grid starts
        at = len(storage.block.nodes) if storage.block is self.block else 0
        storage.block.nodes.insert(at, Alloc(storage))
        return self.tensor.whole(storage)

    def constant(self, shape: tuple[int, ...], dtype: np.dtype[Any], data: Array, name: str) -> View:
        """A read-only HBM tensor with these values (flat, in the storage type); a view of all of it."""
        storage = Storage(shape, dtype, "hbm", 0, self.top, (name, 0), data=data, mutable=False)
        self.storages.append(storage)
        return self.tensor.whole(storage)


def tracer() -> Tracer:
    """The current tracer; raises outside of a kernel."""
    if Tracer.current is None:
        fail("this API works inside a kernel only: call the kernel through nki.simulate_kernel or simulate()")
    return Tracer.current
