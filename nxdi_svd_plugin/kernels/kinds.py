"""What tells one fused kernel from another: how many factor pairs it takes, and which side of the MLP it reads."""

from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.stored.projection import Side

_V_TILE_BYTES = 24 * 1024


@dataclass(frozen=True)
class Kind:
    """A fused kernel Y = X·U·V.

    pairs: factor pairs (U, V) of one call; two are gate and up, which SwiGLU joins.
    reads: the side of the MLP that X is on; Y is on the other. None: a plain matmul of rows of tokens, on neither.
        Tensors of the intermediate side are transposed in HBM, [I, S]; the factor on it may have pivots.
    """

    name: str
    pairs: int = 1
    reads: Side | None = None

    @property
    def reads_intermediate(self) -> bool:
        """Whether X is [I, S] and the rows of U are neurons."""
        return self.reads is Side.INTERMEDIATE

    @property
    def writes_intermediate(self) -> bool:
        """Whether Y is [I, S] and the columns of V are neurons."""
        return self.reads is Side.HIDDEN

    @property
    def swiglu(self) -> bool:
        """Whether the output is silu(gate) * up of two chains."""
        return self.pairs == 2

    def column_tile(self, rank: int) -> int:
        """Columns of V in one packed tile, from the rank alone, so that prefill and decode share the packed weight.

        128 where V is, or may be, the stationary operand. Where it is always the moving one (Y is on the hidden side):
        as many of the 512 as keep a tile within 24 KiB per partition of 16-bit elements.
        """
        if not self.reads_intermediate:
            return PARTITIONS
        fitting = _V_TILE_BYTES // (2 * tiles(rank) * PARTITIONS) * PARTITIONS
        return max(PARTITIONS, min(MOVING, fitting))


XUV, UP_GATE, DOWN = Kind("xuv"), Kind("up_gate", 2, Side.HIDDEN), Kind("down", 1, Side.INTERMEDIATE)
KINDS = {kind.name: kind for kind in (XUV, UP_GATE, DOWN)}


def kind_of(kernel: str) -> Kind:
    """The kind of the kernel of this name.

    Raises:
        KernelError: there is no such kernel.
    """
    if kernel not in KINDS:
        raise KernelError(f"kernel {kernel!r} is unknown; use one of {', '.join(KINDS)}")
    return KINDS[kernel]
