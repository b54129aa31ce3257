"""The traced kernel: a tree of instructions and loops over views of tensors.

Like the real front end, a loop body is traced once with symbolic indices (`tracer`). The machine then executes the
tree (`execute`), prices it (`cost`, `trace`) and looks at its use of memory (`liveness`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np

from nxdi_svd_plugin.simulator.program.affine import Condition, Expr, LoopVar
from nxdi_svd_plugin.simulator.program.dtypes import Array

V = TypeVar("V", bound="View")
Axes = tuple[int | None, ...]
"""Instruction axis of every axis of a view; None where the view is broadcast or collapsed."""
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


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(eq=False, repr=False)
class View:
    """A rectangular, strided part of a tensor, as data: the front's `Tensor` adds operators and subscripts.

    `offset` and `strides` count elements; `blocks` leading axes are block dimensions. On chip, the first axis after
    the block dimensions is the partition axis and `start` the first partition. `checks` are index ranges that only a
    mask can bring in bounds; `indirect` is an index tile and the stride and size of the dimension that it addresses.
    """

    base: Storage
    offset: Expr
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: Expr
    blocks: int = 0
    checks: tuple[tuple[Expr, int], ...] = ()
    mask: Condition | None = None
    indirect: tuple[View, int, int] | None = None
    updated: bool = False  # just changed by `+=`, so that the assignment Python makes afterwards does nothing

    @classmethod
    def whole(cls: type[V], base: Storage, shape: tuple[int, ...] | None = None) -> V:
        """The view of all of a storage, HBM storages optionally under another shape."""
        shape = shape or base.shape
        return cls(base, Expr(0), shape, row_major(shape), Expr(0), base.par if base.on_chip else 0)

    @property
    def entire(self) -> bool:
        """All elements of the tensor in their order."""
        return (
            not self.offset.terms
            and self.strides == row_major(self.shape)
            and prod(self.shape) == prod(self.base.shape)
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the tensor."""
        return self.base.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return int(self.dtype.itemsize)

    @property
    def buffer(self) -> str:
        """sbuf, psum, hbm or shared_hbm."""
        return self.base.buffer

    def __repr__(self) -> str:
        return f"{self.base.buffer} tensor {list(self.shape)} {self.dtype}"

    def same_place(self, other: View) -> bool:
        """True if the other view walks the same elements in the same order."""
        mine, theirs = ((v.base, v.shape, v.strides, v.offset.const, v.offset.terms) for v in (self, other))
        return mine == theirs

    def like(self: V, shape: tuple[int, ...], strides: tuple[int, ...]) -> V:
        """The same memory walked by another shape."""
        return type(self)(
            self.base, self.offset, shape, strides, self.start, self.blocks, self.checks, self.mask, self.indirect
        )


@dataclass(eq=False)
class Alloc:
    """Start of a tensor's life in its block: its memory holds nothing yet."""

    storage: Storage


@dataclass(eq=False)
class Operand:
    """A view read or written, with the instruction axis (or None) that each view axis runs along."""

    view: View
    axes: Axes


@dataclass(eq=False)
class Instr:
    """One instruction over the iteration space `space`.

    `mask` holds `expr >= 0` terms on the axes of the space (`Axis.position` is the number of the axis). `checks` are
    pairs of a dimension's index and size, to be shown in bounds under the mask. `indices` are expressions of loops and
    axes that are evaluated in every run; `compute` takes their values after those of `reads`.
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
    checks: list[tuple[Expr, int]] = field(default_factory=list)
    indices: list[Expr] = field(default_factory=list)


def instructions(block: Block) -> Iterator[Instr]:
    """Every instruction below a block, in program order."""
    for node in block.nodes:
        if isinstance(node, Instr):
            yield node
        elif isinstance(node, Loop):
            for body in node.bodies:
                yield from instructions(body)
