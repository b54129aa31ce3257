"""The kernel calls of one layer's MLP on one core, by shapes alone: dense, unfused and fused.

What a core has of the groups is said in stored/cores.py; dense weights are split over the intermediate axis. Where the
calls run is decided elsewhere (kernels/measure/counts.py, or integration/kernels on a device); importing this binds no
`nki`.
"""

from dataclasses import dataclass, field
from typing import Any

from nxdi_svd_plugin.kernels.kinds import DOWN
from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.stored.runs import Runs

Shape = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One kernel launch: a name of nxdi_svd_plugin.kernels, the shapes of its inputs, its keyword arguments.

    groups: with more than one, every factor is a list of so many tensors of its shape, and so is the input of `down`.
    """

    kernel: str
    shapes: tuple[Shape, ...]
    options: dict[str, Any] = field(default_factory=dict)
    groups: int = 1

    @property
    def arguments(self) -> list[Shape | list[Shape]]:
        """The shape, or the list of shapes, of every input."""
        if self.groups == 1:
            return list(self.shapes)
        lists: list[Shape | list[Shape]] = [[shape] * self.groups for shape in self.shapes]
        return lists if self.kernel == DOWN.name else [self.shapes[0], *lists[1:]]

    def __str__(self) -> str:
        several = [f"({self.groups} groups)"] if self.groups > 1 else []
        return " ".join([self.kernel, *("x".join(map(str, shape)) for shape in self.shapes), *several])


@dataclass(frozen=True)
class Share:
    """What one core has of a projection.

    rank: r, the whole of it; 0 where the projection is dense.
    own: how many of the core's neurons are pivots.
    pivots: where they lie, in tiles of the core's neurons, for the fused kernels; () where none takes them.
    """

    rank: int = 0
    own: int = 0
    pivots: Runs = ()


DENSE = Share()


def fused_up_gate(tokens: int, hidden: int, width: int, gate: Share, up: Share, groups: int = 1) -> Call:
    """`up_gate` of two low-rank projections of `groups` groups, each of `width` neurons."""
    weights = [packed_shapes(hidden, each.rank, width - each.own) for each in (gate, up)]
    options = {"pivots": (gate.pivots, up.pivots)} if gate.pivots or up.pivots else {}
    return Call("up_gate", ((tokens, hidden), *weights[0], *weights[1]), options, groups)


def fused_down(tokens: int, hidden: int, width: int, down: Share, groups: int = 1) -> Call:
    """`down` of a low-rank projection of `groups` groups, each of `width` neurons."""
    weights = packed_shapes(width - down.own, down.rank, hidden)
    return Call("down", ((width, tokens), *weights), {"pivots": down.pivots} if down.pivots else {}, groups)


def fused_mlp(tokens: int, hidden: int, width: int, gate: Share, up: Share, down: Share, groups: int = 1) -> Call:
    """`mlp` of three low-rank projections of `groups` groups, each of `width` neurons: the operands of `fused_up_gate`
    and `fused_down` but for what is between."""
    first, last = fused_up_gate(tokens, hidden, width, gate, up), fused_down(tokens, hidden, width, down)
    pivots = (gate.pivots, up.pivots, down.pivots)
    return Call("mlp", (*first.shapes, *last.shapes[1:]), {"pivots": pivots} if any(pivots) else {}, groups)


def sum_of_groups(tokens: int, hidden: int, groups: int) -> list[Call]:
    """What adds the outputs of groups that were computed on their own."""
    return [Call("add", ((tokens, hidden),) * 2)] * (groups - 1)


def unfused_up_gate(tokens: int, hidden: int, width: int, gate: Share, up: Share) -> list[Call]:
    """Matmuls from Xᵀ to gate and up, both [I, S], and the pass that makes SwiGLU of them."""
    return [*_upwards(tokens, hidden, width, gate), *_upwards(tokens, hidden, width, up), _swiglu(tokens, width)]


def unfused_down(tokens: int, hidden: int, width: int, down: Share) -> list[Call]:
    """Matmuls from [I, S] to [S, H]; the pivots of an interpolative U = [I ; C] are added by a pass."""
    if down == DENSE:
        return [Call("matmul", ((width, tokens), (width, hidden)))]
    made, pivots = width - down.own, (down.own, tokens)
    return [
        Call("matmul", ((made, down.rank), (made, tokens))),
        *([Call("add", (pivots, pivots))] if down.own else []),
        Call("matmul", ((down.rank, tokens), (down.rank, hidden))),
    ]


def dense_mlp(tokens: int, hidden: int, width: int) -> list[Call]:
    """The whole MLP with dense weights."""
    return [*unfused_up_gate(tokens, hidden, width, DENSE, DENSE), *unfused_down(tokens, hidden, width, DENSE)]


def _upwards(tokens: int, hidden: int, width: int, share: Share) -> list[Call]:
    """W · x as [I, S] without any transposition; of V = [I | C] the pivots are rows of the first product."""
    if share == DENSE:
        return [Call("matmul", ((hidden, width), (hidden, tokens)))]
    rank, made = share.rank, width - share.own
    return [Call("matmul", ((hidden, rank), (hidden, tokens))), Call("matmul", ((rank, made), (rank, tokens)))]


def _swiglu(tokens: int, width: int) -> Call:
    return Call("swiglu", ((width, tokens), (width, tokens)))
