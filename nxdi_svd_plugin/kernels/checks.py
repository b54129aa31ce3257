"""From the shapes of a call to its plan: what a call must satisfy is checked before any instruction is traced.

`planned` takes and returns plain values and is cached: NKI's front end, which follows a kernel's calls into Python
functions and gives `range` and `for` a meaning of its own there, calls a cached function as it is. The cache is the
shield; what stands behind it is ordinary Python.
"""

from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.kinds import kind_of
from nxdi_svd_plugin.kernels.tiling import planner
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import MlpPlan, mlp_plan
from nxdi_svd_plugin.kernels.tiling.schedule import Schedule, schedule
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.runs import Runs, length

Shape = tuple[int, ...]


@lru_cache(maxsize=4096)
def planned(
    kernel: str,
    x: Shape,
    us: tuple[Shape, ...],
    vs: tuple[Shape, ...],
    dtypes: tuple[str, ...],
    strip: tuple[int, ...] | None,
    transposed_output: bool = False,
    pivots: tuple[Runs, ...] = (),
    split: int = 0,
    groups: int = 1,
) -> Schedule:
    """The schedule of a call on HBM tensors of these shapes (that of sub-strips `strip` and `split` if there are some).

    Args:
        kernel: name of the kernel.
        x, us, vs: shapes of the input and of the packed factors, of one of the `groups`.
        dtypes: names of the dtypes of the input and of all factors.
    Raises KernelError if shapes or dtypes do not fit together, or nothing fits into SBUF.
    """
    chain = replace(_chain(kernel, x, us, vs, dtypes, transposed_output, pivots), groups=groups)
    if groups > 1 and strip is not None:
        raise KernelError(f"{kernel}: strip {strip} is for one group, not for {groups}")
    return schedule(chain, planner.choose(chain) if strip is None else planner.forced(chain, strip, split))


@lru_cache(maxsize=4096)
def planned_groups(
    kernel: str,
    xs: tuple[Shape, ...],
    factors: tuple[tuple[Shape, ...], ...],
    dtypes: tuple[str, ...],
    strip: tuple[int, ...] | None,
    pivots: tuple[Runs, ...],
    split: int,
) -> Schedule:
    """The schedule of `up_gate` or `down` on tensors of these shapes.

    Args:
        xs: shapes of the inputs, one for all groups or one for each.
        factors: shapes of the packed u and v (of gate, then of up), each a shape for every group.
        dtypes, strip, pivots, split: as above.
    Raises KernelError as above, or if the groups do not agree.
    """
    groups = len(factors[0])
    inputs = groups if kind_of(kernel).reads_intermediate else 1
    _same_groups(kernel, factors)
    if len(xs) != inputs or len(set(xs)) != 1:
        raise KernelError(f"{kernel}: inputs {xs} for {groups} groups; it takes {inputs}, of one shape")
    shapes = [each[0] for each in factors]
    return planned(kernel, xs[0], tuple(shapes[::2]), tuple(shapes[1::2]), dtypes, strip, False, pivots, split, groups)


def _same_groups(kernel: str, factors: tuple[tuple[Shape, ...], ...]) -> None:
    for shapes in factors:
        if len(shapes) != len(factors[0]) or set(shapes) != {shapes[0]}:
            raise KernelError(f"{kernel}: factors {factors} must have one shape for every group, as many as the others")


@lru_cache(maxsize=4096)
def planned_mlp(
    x: Shape, factors: tuple[tuple[Shape, ...], ...], dtypes: tuple[str, ...], pivots: tuple[Runs, Runs, Runs]
) -> MlpPlan:
    """The plan of a call of `mlp`.

    Args:
        x: shape of the input.
        factors: shapes of the packed u and v of gate, of up and of down, each a shape for every group.
        dtypes: names of the dtypes of the input and of all factors.
        pivots: of gate, up and down.
    Raises KernelError if shapes or dtypes do not fit together, or what has to be in SBUF does not fit.
    """
    _itemsize("mlp", dtypes)
    _same_groups("mlp", factors)
    u_gate, v_gate, u_up, v_up, u_down, v_down = (shapes[0] for shapes in factors)
    up = _chain("up_gate", x, (u_gate, u_up), (v_gate, v_up), dtypes, False, pivots[:2])
    down = _chain("down", (up.outputs, up.tokens), (u_down,), (v_down,), dtypes, False, pivots[2:])
    if down.outputs != up.inputs:
        raise KernelError(f"mlp: down makes {down.outputs} columns of an input of {up.inputs}")
    return mlp_plan(up, down, len(factors[0]))


def _chain(
    kernel: str,
    x: Shape,
    us: tuple[Shape, ...],
    vs: tuple[Shape, ...],
    dtypes: tuple[str, ...],
    transposed_output: bool,
    pivots: tuple[Runs, ...],
) -> Chain:
    """What the HBM tensors describe."""
    if len(x) != 2:
        raise KernelError(f"{kernel}: the input {x} must have two dimensions; flatten batch and sequence")
    kind = kind_of(kernel)
    tokens, inputs = (x[1], x[0]) if kind.reads_intermediate else x
    itemsize = _itemsize(kernel, dtypes)
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
    return Chain(kernel, tokens, inputs, ranks, outputs.pop(), itemsize, transposed_output, held)


def _itemsize(kernel: str, dtypes: tuple[str, ...]) -> int:
    if dtypes[0] not in DTYPES:
        raise KernelError(f"{kernel}: {dtypes[0]} is not supported; use bfloat16, float16 or float32")
    if set(dtypes) != {dtypes[0]}:
        raise KernelError(f"{kernel}: weights {list(dtypes[1:])} must have the input's {dtypes[0]}")
    return DTYPES[dtypes[0]].bytes


def _extent(kernel: str, name: str, packed: Shape, blocks: int) -> int:
    """Columns of the factor that `packed` [128, blocks·columns] holds."""
    if len(packed) != 2 or packed[0] != PARTITIONS or packed[1] % blocks or not packed[1]:
        raise KernelError(
            f"{kernel}: {name} {packed} is not a packed factor of {blocks} tiles of 128 rows; "
            f'prepare the plain factors with kernels.pack(u, v, kernel="{kernel}")'
        )
    return packed[1] // blocks
