"""What a kernel call must satisfy, checked before anything is traced; gives the call's chain and blocks."""

from typing import Any

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.kinds import kind_of
from nxdi_svd_plugin.kernels.nki import nl
from nxdi_svd_plugin.kernels.tiling import planner
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.stored.runs import Runs, length


def planned(
    kernel: str,
    x: Any,
    us: list[Any],
    vs: list[Any],
    strip: tuple[int, ...] | None,
    transposed_output: bool = False,
    pivots: tuple[Runs, ...] = (),
) -> tuple[Chain, Blocks]:
    """The chain that the HBM tensors describe and its blocks (those of `strip` if it is given)."""
    if len(x.shape) != 2:
        raise KernelError(f"{kernel}: the input {tuple(x.shape)} must have two dimensions; flatten batch and sequence")
    kind = kind_of(kernel)
    tokens, inputs = (x.shape[1], x.shape[0]) if kind.reads_intermediate else x.shape
    itemsize = _itemsize(kernel, x, [*us, *vs])
    made = [PARTITIONS * length(runs) for runs in pivots] or [0] * len(us)
    rows = inputs - made[0] if kind.reads_intermediate else inputs
    if rows < 1:
        raise KernelError(f"{kernel}: {made[0]} pivots of {inputs} inputs leave none over")
    ranks = tuple(_extent(kernel, "u", u, tiles(rows)) for u in us)
    columns = [_extent(kernel, "v", v, tiles(rank)) for v, rank in zip(vs, ranks, strict=True)]
    outputs = {size + own if kind.writes_intermediate else size for size, own in zip(columns, made, strict=True)}
    if len(outputs) > 1:
        raise KernelError(f"{kernel}: gate and up must be equally wide, got {sorted(outputs)} columns")
    held = pivots if any(pivots) else ()
    chain = Chain(kernel, tokens, inputs, ranks, outputs.pop(), itemsize, transposed_output, held)
    return chain, planner.choose(chain) if strip is None else planner.forced(chain, strip)


def _itemsize(kernel: str, x: Any, weights: list[Any]) -> int:
    sizes = {nl.bfloat16: 2, nl.float16: 2, nl.float32: 4}
    for dtype, size in sizes.items():
        if x.dtype == dtype:
            if any(weight.dtype != dtype for weight in weights):
                raise KernelError(
                    f"{kernel}: weights {[str(w.dtype) for w in weights]} must have the input's {x.dtype}"
                )
            return size
    raise KernelError(f"{kernel}: {x.dtype} is not supported; use bfloat16, float16 or float32")


def _extent(kernel: str, name: str, packed: Any, blocks: int) -> int:
    """Columns of the factor that `packed` [128, blocks·columns] holds."""
    if len(packed.shape) != 2 or packed.shape[0] != PARTITIONS or packed.shape[1] % blocks or not packed.shape[1]:
        raise KernelError(
            f"{kernel}: {name} {tuple(packed.shape)} is not a packed factor of {blocks} tiles of 128 rows; "
            f'prepare the plain factors with kernels.pack(u, v, kernel="{kernel}")'
        )
    return int(packed.shape[1]) // blocks
