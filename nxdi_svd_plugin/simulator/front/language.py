"""`neuronxcc.nki.language`: tensors, loops, indices, data movement, and operators whose engine the compiler picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from nxdi_svd_plugin import hardware
from nxdi_svd_plugin.simulator.front import isa
from nxdi_svd_plugin.simulator.front import language_constants as constants
from nxdi_svd_plugin.simulator.front.indices import arange, mgrid
from nxdi_svd_plugin.simulator.front.tensor import Tensor
from nxdi_svd_plugin.simulator.place import fail, missing_api
from nxdi_svd_plugin.simulator.program import dtypes, elementwise, emit
from nxdi_svd_plugin.simulator.program.affine import Expr
from nxdi_svd_plugin.simulator.program.dma import load, load_transpose2d, store
from nxdi_svd_plugin.simulator.program.functions import BINARY, REDUCE, UNARY, op_name
from nxdi_svd_plugin.simulator.program.indexing import DynamicSlice as ds
from nxdi_svd_plugin.simulator.program.operands import need
from nxdi_svd_plugin.simulator.program.program import View
from nxdi_svd_plugin.simulator.program.scan import loop_reduce
from nxdi_svd_plugin.simulator.program.selection import where
from nxdi_svd_plugin.simulator.program.tracer import tracer

__all__ = ["arange", "constants", "ds", "load", "load_transpose2d", "loop_reduce", "mgrid", "store", "where"]

sbuf, psum, shared_hbm = "sbuf", "psum", "shared_hbm"
hbm = private_hbm = "hbm"


class tile_size:  # noqa: N801
    """Hardware tile limits."""

    pmax = hardware.PARTITIONS
    psum_fmax = hardware.PSUM_BANK_BYTES // 4
    gemm_stationary_fmax = hardware.STATIONARY
    gemm_moving_fmax = hardware.MOVING
    bn_stats_fmax = hardware.BN_STATS
    total_available_sbuf_size = hardware.SBUF_BYTES


def finfo(dtype: Any) -> Any:
    """Limits of a floating data type (`min`, `max`, `eps`)."""
    return ml_dtypes.finfo(dtypes.as_dtype(dtype))  # type: ignore[no-untyped-call]


class fp32:  # noqa: N801
    """Limits of fp32."""

    min = float(np.finfo(np.float32).min)


# ---- tensors
class par_dim(int):  # noqa: N801
    """Marks the partition dimension of a shape; the dimensions before it are block dimensions."""


def _buffer(buffer: Any) -> str:
    if buffer is None:
        return sbuf
    if not isinstance(buffer, str):
        fail("direct allocation (nki.compiler.*.alloc) is not simulated; use nl.sbuf, nl.psum or nl.hbm")
    return buffer


def ndarray(shape: Any, dtype: Any, *, buffer: Any = None, name: str = "") -> View:
    """A new tensor that holds nothing yet."""
    shape = tuple(shape)
    marks = [axis for axis, size in enumerate(shape) if isinstance(size, par_dim)]
    return emit.allocate(shape, dtype, _buffer(buffer), marks[0] if marks else 0, name=name)


def full(
    shape: Any,
    fill_value: Any,
    dtype: Any,
    *,
    buffer: Any = None,
    name: str = "",
    lazy_initialization: bool = False,
) -> View:
    """A new on-chip tensor filled with a constant; lazily: by the first instruction that uses it."""
    if _buffer(buffer) not in (sbuf, psum):
        fail("HBM tensors take no initial value (err_hbm_tensor_with_init_value_not_supported); store into them")
    made = ndarray(shape, dtype, buffer=buffer, name=name)
    flat = made
    if made.blocks:  # one fill per tensor: walk the block dimensions as free ones
        order = (made.blocks, *range(made.blocks), *range(made.blocks + 1, made.ndim))
        flat = made.like(tuple(made.shape[a] for a in order), tuple(made.strides[a] for a in order))
        flat.blocks = 0
    emit.fill(flat, fill_value, whole=True, lazy=lazy_initialization)
    return made


def zeros(shape: Any, dtype: Any, *, buffer: Any = None, name: str = "", lazy_initialization: bool = False) -> View:
    """A new on-chip tensor of zeros."""
    return full(shape, 0, dtype, buffer=buffer, name=name, lazy_initialization=lazy_initialization)


def ones(shape: Any, dtype: Any, *, buffer: Any = None, name: str = "") -> View:
    """A new on-chip tensor of ones."""
    return full(shape, 1, dtype, buffer=buffer, name=name)


def empty_like(a: View, dtype: Any = None, *, buffer: Any = None, name: str = "") -> View:
    """A new tensor of the same shape."""
    return ndarray(a.shape, a.dtype if dtype is None else dtype, buffer=buffer or a.buffer, name=name)


def zeros_like(a: View, dtype: Any = None, *, buffer: Any = None, name: str = "") -> View:
    """A new tensor of zeros of the same shape."""
    return zeros(a.shape, a.dtype if dtype is None else dtype, buffer=buffer or a.buffer, name=name)


def shared_constant(constant: Any, dtype: Any = None) -> View:
    """A constant in HBM; load it before use."""
    values = np.asarray(constant)
    kind = dtypes.as_dtype(values.dtype if dtype is None else dtype)
    data = dtypes.rounded(values.astype(dtypes.storage(kind)), kind).ravel()
    return tracer().constant(values.shape, kind, data, "<constant>")


def shared_identity_matrix(n: int, dtype: Any = np.uint8) -> View:
    """An identity matrix in HBM; load it before use."""
    return shared_constant(np.eye(n), dtype)


# ---- loops
def _values(args: tuple[Any, ...]) -> range:
    if any(isinstance(a, Expr) for a in args):
        fail("a loop bound that depends on a loop index is not simulated; use a constant range and a mask")
    return range(*[int(a) for a in args])


def affine_range(*args: Any) -> Iterator[Any]:
    """Parallel loop: iterations are independent and run in random order here."""
    return tracer().loop("affine", _values(args))


def sequential_range(*args: Any, directives: Any = None) -> Iterator[Any]:
    """Loop in order, with dependencies between iterations."""
    return tracer().loop("sequential", _values(args))


def static_range(*args: Any) -> Iterator[Any]:
    """Loop unrolled while tracing: indices are plain integers."""
    return tracer().loop("static", _values(args))


# ---- the launch grid
class nc(int):  # noqa: N801
    """A grid dimension over several physical NeuronCores, as is `nc(2) * n`; only Trn2 has that."""

    def __mul__(self, other: Any) -> Any:
        return nc(int(self) * int(other))

    __rmul__ = __mul__


def spmd_dim(first: int, second: int) -> int:
    """A grid dimension of `first * second` instances, distributed over cores by the factor that is an `nc`."""
    product = int(first) * int(second)
    return nc(product) if isinstance(first, nc) or isinstance(second, nc) else product


def program_id(axis: int) -> Any:
    """The index of this instance along a grid dimension."""
    variables = tracer().grid_vars
    if not 0 <= axis < len(variables):
        fail(f"program_id({axis}) in a grid of {len(variables)} dimensions; launch the kernel as kernel[g0, ...]")
    return Expr(0, {variables[axis]: 1})


def num_programs(axes: Any = None) -> Any:
    """Grid size along axes."""
    grid = tracer().grid
    if axes is None:
        return grid
    return tuple(grid[a] for a in axes) if isinstance(axes, (tuple, list)) else grid[axes]


def program_ndim() -> int:
    """Number of grid dimensions."""
    return len(tracer().grid)


# ---- whole-tile operators
def copy(src: View, *, mask: Any = None, dtype: Any = None) -> View:
    """A copy in SBUF, or in the PSUM tile that it is assigned to."""
    return elementwise.copy(src, dtypes.as_dtype(dtype) if dtype is not None else None, mask, api="nki.language.copy")


def broadcast_to(src: View, *, shape: Any) -> View:
    """The tile broadcast to a larger shape."""
    return elementwise.broadcast(src, tuple(shape))


def expand_dims(data: Tensor, axis: int) -> View:
    """The tile with one more axis of size 1."""
    return data.expand_dims(axis)


def transpose(x: View, *, dtype: Any = None, mask: Any = None) -> View:
    """[P, F] -> [F, P] by the tensor engine."""
    return isa.nc_transpose(x, dtype=dtype, mask=mask)


def matmul(x: View, y: View, *, transpose_x: bool = False, mask: Any = None) -> View:
    """`x @ y`, or `x.T @ y` with transpose_x; without it x is transposed on the tensor engine first."""
    need(x, "nki.language.matmul", "x", "sbuf")
    if not transpose_x:
        x = elementwise.copy(isa.nc_transpose(x), x.dtype)
    return isa.nc_matmul(x, y, mask=mask)


def device_print(prefix: str, x: View, *, mask: Any = None) -> None:
    """Prints a tile while the kernel is executed."""

    def show(values: Any) -> Any:
        print(prefix, values)
        return values

    sink = emit.allocate(x.shape, x.dtype, "hbm")
    axes = tuple(range(x.ndim))
    instr = emit.instruction(
        "device_print", "vector", x.shape, [(x, axes)], (sink, axes), show, x.dtype, mask, inplace=True
    )
    instr.free = True


def invert(x: View, *, dtype: Any = None, mask: Any = None) -> View:
    """Bitwise NOT of integers and negation of bool, on the Vector Engine."""
    return elementwise.inverted(x, dtype, mask, "nki.language.invert")


def static_cast(input_data: Any, dtype: Any) -> Any:
    """Host side: a numpy array in another type."""
    return np.asarray(input_data).astype(dtype)


def _unary(name: str) -> Callable[..., View]:
    def apply(x: View, *, dtype: Any = None, mask: Any = None) -> View:
        return isa.activation(name, x, dtype=dtype, mask=mask)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"`{name}` of every element, on the Scalar Engine."
    return apply


def _binary(name: str) -> Callable[..., View]:
    def apply(x: Any, y: Any, *, dtype: Any = None, mask: Any = None) -> View:
        return elementwise.binary(name, x, y, dtype=dtype, mask=mask, api=f"nki.language.{name}")

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"Element-wise `{name}`, broadcasting over all axes, on the Vector Engine."
    return apply


def _reduction(name: str) -> Callable[..., View]:
    def apply(x: View, axis: Any, *, dtype: Any = None, mask: Any = None, keepdims: bool = False) -> View:
        return isa.tensor_reduce(op_name(name, REDUCE, name), x, axis, dtype=dtype, mask=mask, keepdims=keepdims)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"`{name}` over free axes, on the Vector Engine."
    return apply


_MADE: dict[str, Any] = {
    **dtypes.TYPES,
    **{name: _unary(name) for name in UNARY if name != "copy"},
    **{name: _binary(name) for name in BINARY},
    **{name: _reduction(name) for name in ("sum", "prod", "max", "min", "mean", "all")},
}


def __getattr__(name: str) -> Any:
    if name in _MADE:
        return _MADE[name]
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.language", name)
