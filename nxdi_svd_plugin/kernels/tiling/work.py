"""What the engines and DMA have to do for one call, by the formulas and constants that the simulator counts with.

Cycles are those of simulator/machine/cost.py, seconds those of its traces; hardware.py has the constants of both.
"""

from dataclasses import dataclass

from nxdi_svd_plugin.hardware import DMA_SHORT_RUN, MIN_CYCLES, PARTITIONS, busy_seconds, dma_seconds


@dataclass
class Work:
    """Sums over the instructions of one call on elements of `itemsize` bytes.

    passes: of the tensor engine over its data, each with its stall; four for an fp32 matmul, two for a transpose of it.
    dma_bytes: with descriptors below DMA_SHORT_RUN counted as that many.
    """

    itemsize: int
    matmul_cycles: int = 0
    transpose_cycles: int = 0
    passes: int = 0
    vector_cycles: int = 0
    vector_issues: int = 0
    scalar_cycles: int = 0
    scalar_issues: int = 0
    psum_seconds: float = 0.0
    dma_bytes: int = 0
    transfers: int = 0

    def matmul(self, times: int, stationary: int, moving: int) -> None:
        """`times` matmuls of these widths."""
        passes = 4 if self.itemsize == 4 else 1
        self.matmul_cycles += times * passes * max(min(MIN_CYCLES, stationary), moving)
        self.passes += times * passes

    def transpose(self, times: int, rows: int, columns: int) -> None:
        """`times` transposes of tiles [rows, columns] on the tensor engine."""
        passes = 2 if self.itemsize == 4 else 1
        self.transpose_cycles += times * passes * max(min(MIN_CYCLES, columns), rows)
        self.passes += times * passes

    def vector(self, times: int, elements: int, from_psum: bool = True) -> None:
        """`times` instructions of the vector engine; `elements`: cycles, those per partition or a multiple of them."""
        cycles = max(MIN_CYCLES, elements)
        self.vector_cycles += times * cycles
        self.vector_issues += times
        self.psum_seconds += times * busy_seconds("vector", cycles, 1) if from_psum else 0.0

    def scalar(self, times: int, elements: int, from_psum: bool = True) -> None:
        """`times` instructions of the scalar engine, of `elements` per partition."""
        cycles = max(MIN_CYCLES, elements)
        self.scalar_cycles += times * cycles
        self.scalar_issues += times
        self.psum_seconds += times * busy_seconds("scalar", cycles, 1) if from_psum else 0.0

    def dma(self, times: int, rows: int, elements: int) -> None:
        """`times` transfers of `rows` descriptors of `elements` contiguous elements each."""
        self.dma_bytes += times * rows * max(DMA_SHORT_RUN, elements * self.itemsize)
        self.transfers += times

    def constants(self, identity: bool, swiglu: bool) -> None:
        """What a call makes once: fp32's identity matrix for transposes, SiLU's zero bias."""
        if identity:
            self.dma(1, PARTITIONS, PARTITIONS)
        if swiglu:
            self.vector(1, 1, from_psum=False)

    @property
    def seconds(self) -> dict[str, float]:
        """MODEL of how long each is busy; `psum`: what the scalar and the vector engine need PSUM for, in turn."""
        return {
            "tensor": busy_seconds("pe", self.matmul_cycles + self.transpose_cycles, self.passes),
            "vector": busy_seconds("vector", self.vector_cycles, self.vector_issues),
            "scalar": busy_seconds("scalar", self.scalar_cycles, self.scalar_issues),
            "psum": self.psum_seconds,
            "dma": dma_seconds(self.dma_bytes, self.transfers),
        }


def sizes(total: int, step: int) -> list[tuple[int, int]]:
    """(size, how many) of what `total` is cut into by `step`: whole steps, and the rest."""
    return [(size, count) for size, count in ((step, total // step), (total % step, 1)) if size and count]
