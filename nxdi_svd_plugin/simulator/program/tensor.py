"""Tensors as kernels see them: strided views of a storage, with subscripting, operators and assignment."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.limits import PARTITIONS
from nxdi_svd_plugin.simulator.place import fail, kernel_place
from nxdi_svd_plugin.simulator.program import elementwise, emit, indexing
from nxdi_svd_plugin.simulator.program.affine import Condition, Expr
from nxdi_svd_plugin.simulator.program.dtypes import as_dtype
from nxdi_svd_plugin.simulator.program.program import Block, Storage, tracer


class View:
    """A rectangular, strided part of a tensor. `offset` and `strides` count elements; `blocks` leading axes are
    block dimensions.

    On chip, the first axis after the block dimensions is the partition axis and `start` the first partition.
    `checks` are index ranges
    that only a mask can bring in bounds; `indirect` is an index tile and the stride and size of the dimension that it
    addresses.
    """

    __array_priority__ = 100
    __hash__ = object.__hash__

    def __init__(
        self,
        base: Storage,
        offset: Expr,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        start: Expr,
        blocks: int = 0,
        checks: tuple[tuple[Expr, int], ...] = (),
        mask: Condition | None = None,
        indirect: tuple[View, int, int] | None = None,
    ) -> None:
        self.base, self.offset, self.shape, self.strides, self.start = base, offset, shape, strides, start
        self.blocks, self.checks, self.mask, self.indirect = blocks, checks, mask, indirect
        self.updated = False  # just changed by `+=`, so that the assignment Python makes afterwards does nothing

    # ---- facts
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

    def __bool__(self) -> bool:
        fail("the truth value of a tensor (err_ambiguous_tensor_truth_value); write `t is not None`")

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        fail("iterating over a tensor; loop over indices with nl.affine_range")

    def same_place(self, other: View) -> bool:
        """True if the other view walks the same elements in the same order."""
        mine, theirs = ((v.base, v.shape, v.strides, v.offset.const, v.offset.terms) for v in (self, other))
        return mine == theirs

    # ---- subscripts
    def __getitem__(self, key: Any) -> View:
        return indexing.subscript(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        target = indexing.subscript(self, key)
        if isinstance(value, View) and value.updated and value.same_place(target):
            value.updated = False
            return
        emit.assign(target, value)

    # ---- in-place operators
    def _inplace(self, other: Any, op: str) -> View:
        elementwise.inplace(self, other, op)
        self.updated = True
        return self

    def __iadd__(self, other: Any) -> View:
        return self._inplace(other, "add")

    def __isub__(self, other: Any) -> View:
        return self._inplace(other, "subtract")

    def __imul__(self, other: Any) -> View:
        return self._inplace(other, "multiply")

    def __itruediv__(self, other: Any) -> View:
        return self._inplace(other, "divide")

    # ---- operators: no broadcast over partitions
    def _binary(self, other: Any, op: str, swap: bool = False) -> View:
        left, right = (other, self) if swap else (self, other)
        return elementwise.binary(op, left, right, broadcast_partitions=False)

    def __add__(self, other: Any) -> View:
        return self._binary(other, "add")

    def __radd__(self, other: Any) -> View:
        return self._binary(other, "add", swap=True)

    def __sub__(self, other: Any) -> View:
        return self._binary(other, "subtract")

    def __rsub__(self, other: Any) -> View:
        return self._binary(other, "subtract", swap=True)

    def __mul__(self, other: Any) -> View:
        return self._binary(other, "multiply")

    def __rmul__(self, other: Any) -> View:
        return self._binary(other, "multiply", swap=True)

    def __truediv__(self, other: Any) -> View:
        return self._binary(other, "divide")

    def __rtruediv__(self, other: Any) -> View:
        return self._binary(other, "divide", swap=True)

    def __neg__(self) -> View:
        return elementwise.binary("multiply", self, -1.0)

    def __lt__(self, other: Any) -> View:
        return self._binary(other, "less")

    def __le__(self, other: Any) -> View:
        return self._binary(other, "less_equal")

    def __gt__(self, other: Any) -> View:
        return self._binary(other, "greater")

    def __ge__(self, other: Any) -> View:
        return self._binary(other, "greater_equal")

    def __eq__(self, other: Any) -> Any:
        return self._binary(other, "equal")

    def __ne__(self, other: Any) -> Any:
        return self._binary(other, "not_equal")

    # ---- methods of NKI tensors
    def astype(self, dtype: Any) -> View:
        """A copy in another data type."""
        return elementwise.copy(self, dtype=as_dtype(dtype))

    def broadcast_to(self, shape: Any) -> View:
        """Broadcast by numpy's rules; over partitions the tensor engine does it."""
        return elementwise.broadcast(self, tuple(shape))

    def expand_dims(self, axis: int) -> View:
        """A view with one more axis of size 1."""
        axis = axis % (self.ndim + 1)
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(axis, 1)
        strides.insert(axis, 0)
        return self.like(tuple(shape), tuple(strides))

    def like(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
        """The same memory walked by another shape."""
        return View(
            self.base, self.offset, shape, strides, self.start, self.blocks, self.checks, self.mask, self.indirect
        )

    def reshape(self, shape: Any) -> View:
        """A view of a whole HBM tensor with another shape of the same size."""
        shape = tuple(shape)
        if self.base.on_chip:
            fail(
                "reshape of an on-chip tensor gave wrong data on the device (aws-neuron-sdk "
                "issue 1051); copy block by block"
            )
        entire = (
            not self.offset.terms
            and self.strides == row_major(self.shape)
            and prod(self.shape) == prod(self.base.shape)
        )
        if prod(shape) != prod(self.shape) or not entire:
            fail(
                f"reshape {list(self.shape)} -> {list(shape)}: only a whole HBM tensor, to the same number of elements"
            )
        return whole(self.base, shape)

    def view(self, dtype: Any) -> View:
        """A kernel input with its bits read as another type of the same width."""
        dtype = as_dtype(dtype)
        if dtype != self.dtype:
            fail(f"view({dtype}) of {self.dtype}: only the tensor's own type is simulated")
        return self

    def assert_shape(self, shape: Any) -> View:
        """The tensor itself, after a check of its shape."""
        if tuple(shape) != self.shape:
            fail(f"expected shape {list(shape)}, found {list(self.shape)}")
        return self


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def whole(base: Storage, shape: tuple[int, ...] | None = None) -> View:
    """The view of all of a storage, HBM storages optionally under another shape."""
    shape = shape or base.shape
    return View(base, Expr(0), shape, row_major(shape), Expr(0), base.par if base.on_chip else 0)


def allocate(
    shape: tuple[int, ...], dtype: Any, buffer: str, par: int = 0, block: Block | None = None, name: str = ""
) -> View:
    """A new tensor in the current block, with the checks of its memory."""
    dtype, current = as_dtype(dtype), tracer()
    if any(not isinstance(n, (int, np.integer)) or n <= 0 for n in shape):
        fail(f"a tensor shape has positive integers, found {shape}")
    shape = tuple(int(n) for n in shape)
    if buffer in ("sbuf", "psum"):
        if len(shape) - par < 2:
            fail(f"on-chip tensors are at least 2-D, found {list(shape)}: write (128, 1) instead of (128,)")
        if shape[par] > PARTITIONS:
            fail(f"partition dimension {shape[par]} exceeds the {PARTITIONS} partitions of {buffer}")
    if buffer == "shared_hbm":
        if any(loop.kind != "grid" for loop in current.block.loops()) or current.in_helper():
            fail(
                "nl.shared_hbm tensors are made at the top level of the kernel, not in a loop or another function "
                "(err_shared_hbm_must_in_kernel_level)"
            )
        block = current.top
    storage = Storage(shape, dtype, buffer, par, block or current.block, kernel_place(), name)
    current.allocate(storage)
    return whole(storage)
