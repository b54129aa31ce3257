"""The kernel calls of one layer's MLP on one core, by shapes alone: dense, unfused and fused.

The layout is the paper's (Fig. 4): V_gate, V_up and U_down, and dense weights, are split over the intermediate axis,
U_gate, U_up and V_down are whole on every core. Where the calls run is decided elsewhere (kernels/measure/counts.py, or
integration/kernels on a device); importing this binds no `nki`.
"""

from dataclasses import dataclass, field
from typing import Any

from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.kernels.tiling.segments import Runs

Shape = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One kernel launch: a name of nxdi_svd_plugin.kernels, the shapes of its inputs, its keyword arguments."""

    kernel: str
    shapes: tuple[Shape, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.kernel, *("x".join(map(str, shape)) for shape in self.shapes)])


@dataclass(frozen=True)
class Part:
    """A projection on one core: rank 0 is dense; an interpolative one has `own` pivots, `pivots` in tiles of I."""

    rank: int = 0
    own: int = 0
    pivots: Runs = ()


DENSE = Part()


def fused_up_gate(tokens: int, hidden: int, shard: int, gate: Part, up: Part) -> Call:
    """`up_gate` of two factored projections."""
    weights = [packed_shapes(hidden, each.rank, shard - each.own) for each in (gate, up)]
    options = {"pivots": (gate.pivots, up.pivots)} if gate.pivots or up.pivots else {}
    return Call("up_gate", ((tokens, hidden), *weights[0], *weights[1]), options)


def fused_down(tokens: int, hidden: int, shard: int, down: Part) -> Call:
    """`down` of a factored projection."""
    weights = packed_shapes(shard - down.own, down.rank, hidden)
    return Call("down", ((shard, tokens), *weights), {"pivots": down.pivots} if down.pivots else {})


def unfused_up_gate(tokens: int, hidden: int, shard: int, gate: Part, up: Part) -> list[Call]:
    """Matmuls from Xᵀ to gate and up, both [I, S], and the pass that makes SwiGLU of them."""
    return [*_upwards(tokens, hidden, shard, gate), *_upwards(tokens, hidden, shard, up), _swiglu(tokens, shard)]


def unfused_down(tokens: int, hidden: int, shard: int, down: Part) -> list[Call]:
    """Matmuls from [I, S] to [S, H]; the pivots of an interpolative U = [I ; C] are added by a pass."""
    if down == DENSE:
        return [Call("matmul", ((shard, tokens), (shard, hidden)))]
    made, pivots = shard - down.own, (down.own, tokens)
    return [
        Call("matmul", ((made, down.rank), (made, tokens))),
        *([Call("add", (pivots, pivots))] if down.own else []),
        Call("matmul", ((down.rank, tokens), (down.rank, hidden))),
    ]


def dense_mlp(tokens: int, hidden: int, shard: int) -> list[Call]:
    """The whole MLP with dense weights."""
    return [*unfused_up_gate(tokens, hidden, shard, DENSE, DENSE), *unfused_down(tokens, hidden, shard, DENSE)]


def _upwards(tokens: int, hidden: int, shard: int, part: Part) -> list[Call]:
    """W · x as [I, S] without any transposition; of V = [I | C] the pivots are rows of the first product."""
    if part == DENSE:
        return [Call("matmul", ((hidden, shard), (hidden, tokens)))]
    rank, made = part.rank, shard - part.own
    return [Call("matmul", ((hidden, rank), (hidden, tokens))), Call("matmul", ((rank, made), (rank, tokens)))]


def _swiglu(tokens: int, shard: int) -> Call:
    return Call("swiglu", ((shard, tokens), (shard, tokens)))
