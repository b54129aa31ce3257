"""What is to be computed: the shapes of one fused kernel call, and the bytes that no plan can avoid."""

from dataclasses import dataclass

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels.tiling.limits import MOVING, PARTITIONS, tiles

KERNELS = ("xuv", "up_gate", "down")
_V_TILE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Chain:
    """One call of `kernel` on `tokens` rows: X [tokens, inputs], U [inputs, r], V [r, outputs] for each r in `ranks`.

    `up_gate` has two ranks (gate, up); `xuv` and `down` have one. `down` reads its input transposed, [inputs, tokens].
    `transposed_output` is a choice for `xuv` alone: `up_gate` always writes [outputs, tokens], `down` never does.
    """

    kernel: str
    tokens: int
    inputs: int
    ranks: tuple[int, ...]
    outputs: int
    itemsize: int = 2
    transposed_output: bool = False

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise KernelError(f"kernel {self.kernel!r} is unknown; use one of {', '.join(KERNELS)}")
        expected = 2 if self.kernel == "up_gate" else 1
        if len(self.ranks) != expected:
            raise KernelError(f"{self.kernel} needs {expected} rank(s), got {self.ranks}")
        sizes = (self.tokens, self.inputs, self.outputs, *self.ranks)
        if min(sizes) < 1:
            raise KernelError(f"{self.kernel}: tokens, inputs, ranks and outputs must be positive, got {sizes}")
        if self.itemsize not in (2, 4):
            raise KernelError(f"{self.kernel}: {self.itemsize}-byte elements; the kernels take bf16, fp16 and fp32")

    @property
    def transposed_input(self) -> bool:
        """True if the input already has its contraction axis first."""
        return self.kernel == "down"

    @property
    def writes_transposed(self) -> bool:
        """True if the output is [outputs, tokens]."""
        return self.kernel == "up_gate" or (self.kernel == "xuv" and self.transposed_output)

    @property
    def token_align(self) -> int:
        """Tokens of (X·U)ᵀ are kept in tensors of multiples of this: whole tiles where tokens are stationary."""
        return 1 if self.writes_transposed else PARTITIONS

    @property
    def input_tiles(self) -> int:
        """128-row tiles of the contraction with U."""
        return tiles(self.inputs)

    @property
    def rank_tiles(self) -> int:
        """128-row tiles of the contraction with V, over all chains of the call."""
        return sum(tiles(rank) for rank in self.ranks)

    @property
    def activation_bytes(self) -> int:
        """HBM bytes of the input read once and the output written once (and of fp32's identity matrix)."""
        identity = PARTITIONS * PARTITIONS * self.itemsize if self.needs_identity else 0
        return self.itemsize * self.tokens * (self.inputs + self.outputs) + identity

    @property
    def needs_identity(self) -> bool:
        """fp32 tiles are transposed by a matmul with an identity matrix that is loaded once."""
        return self.itemsize == 4 and not self.transposed_input

    @property
    def u_bytes(self) -> int:
        """HBM bytes of the packed U, read once per sub-strip (rows padded to a multiple of 128)."""
        return self.itemsize * PARTITIONS * self.input_tiles * sum(self.ranks)

    @property
    def v_bytes(self) -> int:
        """HBM bytes of the packed V, read once per strip (rows padded to a multiple of 128)."""
        return self.itemsize * PARTITIONS * self.rank_tiles * self.outputs

    @property
    def flops(self) -> int:
        """Multiply-adds counted as two, without transposes and padding."""
        return 2 * self.tokens * sum(self.ranks) * (self.inputs + self.outputs)


def column_tile(kernel: str, rank: int) -> int:
    """Columns of V in one packed tile, from the rank alone, so that prefill and decode share the packed weight.

    128 where V is the stationary operand (`up_gate`, and `xuv`, which can write either orientation); for `down` as many
    of the moving operand's 512 as keep a tile within 16 KiB per partition of 16-bit elements.
    """
    if kernel != "down":
        return PARTITIONS
    fitting = _V_TILE_BYTES // (2 * tiles(rank) * PARTITIONS) * PARTITIONS
    return max(PARTITIONS, min(MOVING, fitting))
