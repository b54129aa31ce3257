"""The traced kernel: a tree of instructions and loops, and the tracer that builds it.

Like the real front end, a loop body is traced once with symbolic indices. The tree is then executed (`execute`),
counted (`count`)
and analysed for memory use (`liveness`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail, kernel_frame, kernel_place
from nxdi_svd_plugin.simulator.program.affine import Condition, Expr, LoopVar
from nxdi_svd_plugin.simulator.program.dtypes import Array

if TYPE_CHECKING:
    from nxdi_svd_plugin.simulator.program.tensor import View


# instruction axis of every axis of a view; None: the view is broadcast or collapsed there
Axes = tuple[int | None, ...]
Reads = list[tuple["View", Axes]]


@dataclass(eq=False, repr=False)
class Block:
    """A loop body or the whole kernel; tensors created in it are dead once it is closed."""

    loop: Loop | None = None
    parent: Block | None = None
    nodes: list[Any] = field(default_factory=list)
    closed: bool = False

    def loops(self) -> list[Loop]:
        """Enclosing loops, outermost first."""
        above = self.parent.loops() if self.parent else []
        return [*above, self.loop] if self.loop else above


@dataclass(eq=False)
class Loop:
    """`kind` is affine, sequential, static or grid. Traced loops have one body; unrolled ones a body per iteration."""

    kind: str
    values: range
    var: LoopVar | None
    bodies: list[Block] = field(default_factory=list)

    @property
    def shuffled(self) -> bool:
        """Iterations are independent and run in random order."""
        return self.kind in ("affine", "grid")


@dataclass(eq=False, repr=False)
class Storage:
    """One tensor's memory; `par` is the position of the partition dimension for on-chip tensors."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    buffer: str  # sbuf, psum, hbm, shared_hbm
    par: int
    block: Block
    place: tuple[str, int]
    name: str = ""
    data: Array | None = None  # kernel inputs and constants
    mutable: bool = True
    producer: Instr | None = None  # the instruction whose result this tile is
    target: View | None = None  # where that result was forwarded to

    @property
    def on_chip(self) -> bool:
        """SBUF or PSUM."""
        return self.buffer in ("sbuf", "psum")

    @property
    def partition_bytes(self) -> int:
        """Bytes per partition: block and free dimensions together."""
        elements = 1
        for axis, size in enumerate(self.shape):
            elements *= 1 if axis == self.par else size
        return elements * self.dtype.itemsize


@dataclass(eq=False)
class Alloc:
    """Start of a tensor's life in its block: its memory holds nothing yet."""

    storage: Storage


@dataclass(eq=False)
class Operand:
    """A view read or written, with the instruction axis (or None) that each view axis runs along."""

    view: View
    axes: tuple[int | None, ...]


@dataclass(eq=False)
class Instr:
    """One instruction over the iteration space `space`; `mask` holds `expr >= 0` terms on its axes (Axis.position
    = axis number).
    """

    op: str
    engine: str  # pe, scalar, vector, gpsimd, dma
    space: tuple[int, ...]
    reads: list[Operand]
    write: Operand
    compute: Callable[..., Array]
    dtype: np.dtype[Any]
    place: tuple[str, int]
    block: Block
    mask: list[Expr] = field(default_factory=list)
    accumulate: bool = False
    free: bool = False  # a zero fill that the first matmul of an accumulation group makes unnecessary
    info: dict[str, Any] = field(default_factory=dict)
    checks: list[tuple[Expr, int]] = field(
        default_factory=list
    )  # dimension index and size, to be shown in bounds under the mask


class UnrollRequest(Exception):  # noqa: N818 - a signal, not an error
    """An `if` looked at loop indices: trace again with the loops at these sites unrolled."""

    def __init__(self, sites: set[tuple[str, int]]) -> None:
        super().__init__(f"unroll {sites}")
        self.sites = sites


class Tracer:
    """Collects the program while the kernel function runs. One tracer is current at a time."""

    current: Tracer | None = None

    def __init__(
        self, strict: bool, target: str, unrolled: set[tuple[str, int]], grid: tuple[int, ...], code: Any = None
    ) -> None:
        self.strict, self.target, self.unrolled, self.grid, self.code = strict, target, unrolled, grid, code
        self.top: Block = Block()
        self.block: Block = self.top
        self.grid_vars: list[LoopVar] = []
        self.storages: list[Storage] = []
        self.warnings: list[str] = []
        self.returned_tuple = False

    def __enter__(self) -> Tracer:
        self.outer, Tracer.current = Tracer.current, self
        Condition.on_if = self._request
        return self

    def __exit__(self, *exc: object) -> None:
        Tracer.current = self.outer
        Condition.on_if = self.outer._request if self.outer else None

    def _request(self, variables: set[LoopVar]) -> None:
        raise UnrollRequest({var.site for var in variables})

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

    def allocate(self, storage: Storage) -> None:
        """Register a tensor in the block that it belongs to."""
        self.storages.append(storage)
        if storage.data is None:
            at = (
                len(storage.block.nodes) if storage.block is self.block else 0
            )  # outputs are made before the grid starts
            storage.block.nodes.insert(at, Alloc(storage))


def tracer() -> Tracer:
    """The current tracer; raises outside of a kernel."""
    if Tracer.current is None:
        fail("this API works inside a kernel only: call the kernel through nki.simulate_kernel or simulate()")
    return Tracer.current


def instructions(block: Block) -> Iterator[Instr]:
    """Every instruction below a block, in program order."""
    for node in block.nodes:
        if isinstance(node, Instr):
            yield node
        elif isinstance(node, Loop):
            for body in node.bodies:
                yield from instructions(body)
