"""The weight layouts that the kernels read: every load is one contiguous run per partition, in the order it is used.

u [inputs, R] becomes [128, input_tiles·R]: for each 128-column tile of the rank, partition p holds its row of every
128-row tile of the contraction, side by side. v [R, outputs] becomes [128, rank_tiles·outputs]: the same with tiles of
`column_tile` columns. Only the two contraction axes are padded (with zeros) to multiples of 128.

`down` and `up_gate` meet at the intermediate axis I. Where 128 divides I, its row i = p·(I/128) + j is on partition p,
tile j (elsewhere i = j·128 + p): then a whole [I, S] tensor moves in one transfer with long runs, even for one token.
Every function takes numpy arrays or torch tensors: only reshape, permute/transpose and slice assignment are used.
"""

from typing import Any

import numpy as np

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.kinds import kind_of


def interleaved(extent: int) -> bool:
    """True if the intermediate axis is laid out i = p·(extent/128) + j."""
    return extent % PARTITIONS == 0


def pack(u: Any, v: Any, kernel: str = "xuv", interpolative: bool = False) -> tuple[Any, Any]:
    """(u_packed, v_packed) in the layout that `kernel` ("xuv", "up_gate" or "down") reads.

    u [inputs, R], v [R, outputs]: numpy arrays or torch tensors of any dtype, also a tensor-parallel shard of them.
    `up_gate` takes two packed pairs, one for gate and one for up. Prefill and token generation read the same layout.
    `interpolative`: C stands in for v (up_gate) or u (down); `to_kernel_order` has the order of I.
    Raises KernelError if the ranks differ or the kernel is unknown.
    """
    kind = kind_of(kernel)
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0]:
        raise KernelError(f"pack: u {tuple(u.shape)} and v {tuple(v.shape)} must be [inputs, R] and [R, outputs]")
    rank = u.shape[1]
    u = _interleave_rows(u) if kind.reads_intermediate and not interpolative else _pad_rows(u)
    v = _interleave_columns(v) if kind.writes_intermediate and not interpolative else v
    return _to_tiles(u, PARTITIONS), _to_tiles(_pad_rows(v), kind.column_tile(rank))


def packed_shapes(inputs: int, rank: int, outputs: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes that `pack` gives u [inputs, rank] and v [rank, outputs], whatever the kernel."""
    return (PARTITIONS, tiles(inputs) * rank), (PARTITIONS, tiles(rank) * outputs)


def unpack(
    u_packed: Any, v_packed: Any, inputs: int, kernel: str = "xuv", interpolative: bool = False
) -> tuple[Any, Any]:
    """Inverse of `pack`: (u [inputs, R], v [R, outputs]). `inputs` is needed because its padding is not recorded."""
    kind = kind_of(kernel)
    rank, outputs = u_packed.shape[1] // tiles(inputs), 0
    outputs = v_packed.shape[1] // max(1, tiles(rank))
    if (tuple(u_packed.shape), tuple(v_packed.shape)) != packed_shapes(inputs, rank, outputs) or not rank:
        raise KernelError(
            f"unpack: u {tuple(u_packed.shape)} and v {tuple(v_packed.shape)} were not packed from {inputs} inputs"
        )
    u = _from_tiles(u_packed, tiles(inputs), rank, PARTITIONS)
    v = _from_tiles(v_packed, tiles(rank), outputs, kind.column_tile(rank))[:rank]
    u = _restore_rows(u, inputs) if kind.reads_intermediate and not interpolative else u[:inputs]
    return u, _restore_columns(v) if kind.writes_intermediate and not interpolative else v


def to_kernel_order(h_t: Any) -> Any:
    """[I, ...] in the order of I that interpolative factors have, to the rows that the kernels exchange in HBM.

    The pivots of interpolative factors are whole tiles of 128 neurons, and neuron j·128 + p is row p·(I/128) + j.
    """
    rows, *rest = h_t.shape
    return _swap_first(h_t.reshape(rows // PARTITIONS, PARTITIONS, *rest)).reshape(rows, *rest)


def from_kernel_order(h_t: Any) -> Any:
    """Inverse of `to_kernel_order`."""
    rows, *rest = h_t.shape
    return _swap_first(h_t.reshape(PARTITIONS, rows // PARTITIONS, *rest)).reshape(rows, *rest)


def _swap_first(array: Any) -> Any:
    return _axes(array, 1, 0, *range(2, array.ndim))


def _zeros(like: Any, shape: tuple[int, int]) -> Any:
    return like.new_zeros(shape) if hasattr(like, "new_zeros") else np.zeros(shape, like.dtype)


def _axes(array: Any, *order: int) -> Any:
    return array.permute(*order) if hasattr(array, "permute") else array.transpose(*order)


def _pad_rows(array: Any) -> Any:
    padded = _zeros(array, (tiles(array.shape[0]) * PARTITIONS, array.shape[1]))
    padded[: array.shape[0]] = array
    return padded


def _interleave_rows(u: Any) -> Any:
    """Rows p·(I/128) + j to position j·128 + p."""
    rows, rank = u.shape
    if not interleaved(rows):
        return _pad_rows(u)
    return _axes(u.reshape(PARTITIONS, rows // PARTITIONS, rank), 1, 0, 2).reshape(rows, rank)


def _restore_rows(u: Any, inputs: int) -> Any:
    if not interleaved(inputs):
        return u[:inputs]
    return _axes(u.reshape(inputs // PARTITIONS, PARTITIONS, u.shape[1]), 1, 0, 2).reshape(inputs, u.shape[1])


def _interleave_columns(v: Any) -> Any:
    """Columns p·(I/128) + j to position j·128 + p."""
    rank, columns = v.shape
    if not interleaved(columns):
        return v
    return _axes(v.reshape(rank, PARTITIONS, columns // PARTITIONS), 0, 2, 1).reshape(rank, columns)


def _restore_columns(v: Any) -> Any:
    rank, columns = v.shape
    if not interleaved(columns):
        return v
    return _axes(v.reshape(rank, columns // PARTITIONS, PARTITIONS), 0, 2, 1).reshape(rank, columns)


def _to_tiles(array: Any, width: int) -> Any:
    """[k·128, n] to [128, k·n]: for each tile of `width` columns, row p of every 128-row block, side by side."""
    blocks, columns = array.shape[0] // PARTITIONS, array.shape[1]
    packed = _zeros(array, (PARTITIONS, blocks * columns))
    for start in range(0, columns, width):
        stop = min(columns, start + width)
        tile = array[:, start:stop].reshape(blocks, PARTITIONS, stop - start)
        packed[:, blocks * start : blocks * stop] = _axes(tile, 1, 0, 2).reshape(PARTITIONS, -1)
    return packed


def _from_tiles(packed: Any, blocks: int, columns: int, width: int) -> Any:
    array = _zeros(packed, (blocks * PARTITIONS, columns))
    for start in range(0, columns, width):
        stop = min(columns, start + width)
        tile = packed[:, blocks * start : blocks * stop].reshape(PARTITIONS, blocks, stop - start)
        array[:, start:stop] = _axes(tile, 1, 0, 2).reshape(blocks * PARTITIONS, stop - start)
    return array
