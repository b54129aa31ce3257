"""What is to be computed: the shapes of one fused kernel call, and the bytes that no plan can avoid."""

from dataclasses import dataclass
from functools import cached_property

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.kinds import Kind, kind_of
from nxdi_svd_plugin.kernels.tiling.segments import Segment, segments
from nxdi_svd_plugin.stored.runs import Runs, length


@dataclass(frozen=True)
class Chain:
    """One call of `kernel` on `tokens` rows: X [tokens, inputs], U [inputs, r], V [r, outputs] for each r in `ranks`.

    `up_gate` has two ranks (gate, up); `xuv` and `down` have one. `down` reads its input transposed, [inputs, tokens].
    `transposed_output` is a choice for `xuv` alone: `up_gate` always writes [outputs, tokens], `down` never does.
    `pivots` are those of each interpolative factor, in tiles of the intermediate axis (`up_gate`'s outputs, `down`'s
    inputs).
    `groups` of up_gate share X, and their chains are made one after the other; those of down add up to one output.
    All have the same sizes, which are those of one.
    Raises:
        KernelError: an unknown kernel, or shapes that it does not take.
    """

    kernel: str
    tokens: int
    inputs: int
    ranks: tuple[int, ...]
    outputs: int
    itemsize: int = 2
    transposed_output: bool = False
    pivots: tuple[Runs, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        if len(self.ranks) != self.kind.pairs:
            raise KernelError(f"{self.kernel} needs {self.kind.pairs} rank(s), got {self.ranks}")
        sizes = (self.tokens, self.inputs, self.outputs, *self.ranks)
        if min(sizes) < 1:
            raise KernelError(f"{self.kernel}: tokens, inputs, ranks and outputs must be positive, got {sizes}")
        if self.itemsize not in (2, 4):
            raise KernelError(f"{self.kernel}: {self.itemsize}-byte elements; the kernels take bf16, fp16 and fp32")
        if self.groups < 1 or (self.groups > 1 and self.kind.reads is None):
            raise KernelError(f"{self.kernel} takes no {self.groups} groups; up_gate and down take one or more")
        if any(self.pivots):
            self._check_pivots()

    def _check_pivots(self) -> None:
        extent = self._intermediate
        if self.kind.reads is None or len(self.pivots) != len(self.ranks) or extent % PARTITIONS:
            raise KernelError(
                f"{self.kernel}: pivots {self.pivots} need up_gate or down, one entry a rank {self.ranks}, and an "
                f"intermediate axis of whole tiles of {PARTITIONS}, not {extent}"
            )
        for runs, rank in zip(self.pivots, self.ranks, strict=True):
            edges = [edge for run in runs for edge in run]
            ascending = all(a < b for a, b in runs) and edges == sorted(edges)
            inside = not edges or (edges[0] >= 0 and edges[-1] <= extent // PARTITIONS)
            if not (ascending and inside and length(runs) * PARTITIONS <= min(rank, extent - PARTITIONS)):
                raise KernelError(
                    f"{self.kernel}: pivot runs {runs} must be ascending tiles of the {extent // PARTITIONS} of the "
                    f"intermediate axis, no more than the rank {rank} has, and leave a tile over"
                )

    @cached_property
    def kind(self) -> Kind:
        """What the kernel reads and writes."""
        return kind_of(self.kernel)

    @cached_property
    def _intermediate(self) -> int:
        """Extent of the axis on which pivots may lie."""
        return self.inputs if self.kind.reads_intermediate else self.outputs

    @cached_property
    def transposed_input(self) -> bool:
        """True if the input already has its contraction axis first."""
        return self.kind.reads_intermediate

    @cached_property
    def writes_transposed(self) -> bool:
        """True if the output is [outputs, tokens]."""
        return self.kind.writes_intermediate or (self.kind.reads is None and self.transposed_output)

    @cached_property
    def token_align(self) -> int:
        """Tokens of (X·U)ᵀ are kept in tensors of multiples of this: whole tiles where tokens are stationary."""
        return 1 if self.writes_transposed else PARTITIONS

    @cached_property
    def pivot_tiles(self) -> tuple[int, ...]:
        """Tiles of the intermediate axis that are pivots, for each factor."""
        return tuple(map(length, self.pivots)) or (0,) * len(self.ranks)

    @cached_property
    def segments(self) -> list[Segment]:
        """The intermediate axis (whole tiles where there are pivots) cut where a run of pivots begins or ends."""
        return segments(tiles(self._intermediate), self.pivots or ((),) * len(self.ranks))

    @cached_property
    def u_rows(self) -> int:
        """Rows of the stored U: the inputs, of an interpolative `down` those that are no pivots."""
        return self.inputs - PARTITIONS * (self.pivot_tiles[0] if self.kind.reads_intermediate else 0)

    @cached_property
    def v_columns(self) -> tuple[int, ...]:
        """Columns of each stored V: the outputs, of an interpolative gate or up those that are no pivots."""
        return tuple(self.outputs - PARTITIONS * (count if self.writes_transposed else 0) for count in self.pivot_tiles)

    @cached_property
    def column_tile(self) -> int:
        """Columns of V in one packed tile."""
        return self.kind.column_tile(self.ranks[0])

    @cached_property
    def input_tiles(self) -> int:
        """128-row tiles of the contraction with U."""
        return tiles(self.inputs)

    @cached_property
    def turns(self) -> int:
        """Groups that are expanded one after the other, each into an output of its own: those of up_gate."""
        return self.groups if self.kind.writes_intermediate else 1

    @cached_property
    def summed(self) -> int:
        """Groups that have an input each, and one sum for the output: those of down."""
        return self.groups // self.turns

    @cached_property
    def rank_tiles(self) -> int:
        """128-row tiles of the contraction with V, over all chains that are expanded together."""
        return self.summed * sum(tiles(rank) for rank in self.ranks)

    @cached_property
    def activation_bytes(self) -> int:
        """HBM bytes of the input read once and the output written once (and of fp32's identity matrix)."""
        identity = PARTITIONS * PARTITIONS * self.itemsize if self.needs_identity else 0
        return self.itemsize * self.tokens * (self.summed * self.inputs + self.turns * self.outputs) + identity

    @cached_property
    def needs_identity(self) -> bool:
        """fp32 tiles are transposed by a matmul with an identity matrix that is loaded once."""
        return self.itemsize == 4 and not self.transposed_input

    @cached_property
    def u_bytes(self) -> int:
        """HBM bytes of the packed U, read once per sub-strip (rows padded to a multiple of 128)."""
        return self.groups * self.itemsize * PARTITIONS * tiles(self.u_rows) * sum(self.ranks)

    @cached_property
    def v_bytes(self) -> int:
        """HBM bytes of the packed V, read once per strip (rows padded to a multiple of 128)."""
        stored = sum(tiles(rank) * columns for rank, columns in zip(self.ranks, self.v_columns, strict=True))
        return self.groups * self.itemsize * PARTITIONS * stored

    @cached_property
    def flops(self) -> int:
        """Multiply-adds counted as two, without transposes and padding."""
        pairs = zip(self.ranks, self.v_columns, strict=True)
        return 2 * self.groups * self.tokens * sum(rank * (self.u_rows + columns) for rank, columns in pairs)
