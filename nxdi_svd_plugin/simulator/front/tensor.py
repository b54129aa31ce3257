"""Tensors as kernels see them: views with subscripts, operators, assignment and the methods of NKI tensors."""

from __future__ import annotations

from math import prod
from typing import Any

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program import elementwise, emit, indexing
from nxdi_svd_plugin.simulator.program.dtypes import as_dtype
from nxdi_svd_plugin.simulator.program.program import View


class Tensor(View):
    """A view that a kernel can subscript, assign to and calculate with."""

    __array_priority__ = 100
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        fail("the truth value of a tensor (err_ambiguous_tensor_truth_value); write `t is not None`")

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *_: Any, **__: Any) -> Any:
        fail("numpy does not calculate with tensors; use nl or nisa")

    def __iter__(self) -> Any:
        fail("iterating over a tensor; loop over indices with nl.affine_range")

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
    def _inplace(self, other: Any, op: str) -> Tensor:
        elementwise.inplace(self, other, op)
        self.updated = True
        return self

    def __iadd__(self, other: Any) -> Tensor:
        return self._inplace(other, "add")

    def __isub__(self, other: Any) -> Tensor:
        return self._inplace(other, "subtract")

    def __imul__(self, other: Any) -> Tensor:
        return self._inplace(other, "multiply")

    def __itruediv__(self, other: Any) -> Tensor:
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

    def __pow__(self, other: Any) -> View:
        return self._binary(other, "power")

    def __mod__(self, other: Any) -> View:
        return self._binary(other, "mod")

    def __and__(self, other: Any) -> View:
        return self._binary(other, "bitwise_and")

    def __or__(self, other: Any) -> View:
        return self._binary(other, "bitwise_or")

    def __xor__(self, other: Any) -> View:
        return self._binary(other, "bitwise_xor")

    def __lshift__(self, other: Any) -> View:
        return self._binary(other, "left_shift")

    def __rshift__(self, other: Any) -> View:
        return self._binary(other, "right_shift")

    def __invert__(self) -> View:
        return elementwise.inverted(self)

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

    def expand_dims(self, axis: int) -> Tensor:
        """A view with one more axis of size 1."""
        axis = axis % (self.ndim + 1)
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(axis, 1)
        strides.insert(axis, 0)
        return self.like(tuple(shape), tuple(strides))

    def reshape(self, shape: Any) -> Tensor:
        """A view of a whole HBM tensor with another shape of the same size."""
        shape = tuple(shape)
        if self.base.on_chip:
            fail(
                "reshape of an on-chip tensor gave wrong data on the device (aws-neuron-sdk issue 1051); "
                "copy block by block"
            )
        if prod(shape) != prod(self.shape) or not self.entire:
            fail(
                f"reshape {list(self.shape)} -> {list(shape)}: only a whole HBM tensor, to the same number of elements"
            )
        return Tensor.whole(self.base, shape)

    def view(self, dtype: Any) -> Tensor:
        """A kernel input with its bits read as another type of the same width."""
        dtype = as_dtype(dtype)
        if dtype != self.dtype:
            fail(f"view({dtype}) of {self.dtype}: only the tensor's own type is simulated")
        return self
