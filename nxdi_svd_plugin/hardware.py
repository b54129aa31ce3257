"""One NeuronCore-v2 (Trn1) in numbers: what the block-size model plans with and what the simulator enforces.

Sources, all in aws-neuron-sdk v2.26.1: [arch] `nki/arch/trainium_inferentia2_arch.rst`, [isa]
`nki/api/nki/isa/__init__.py`, [perf] `nki/nki_perf_guide.rst`, [sbuf] `nki/api/nki/compiler/sbuf.py`, [matmul]
`nki/examples/matrix_multiplication/matrix_multiplication_nki_kernels.py`.
"""

PARTITIONS = 128
"""Rows of SBUF and of PSUM, so the largest contraction of a matmul [arch]."""
STATIONARY = 128
"""Columns of a matmul's stationary operand, at most [arch]."""
MOVING = 512
"""Columns of a matmul's moving operand, at most: one PSUM bank of fp32 [arch]."""
VECTOR_TRANSPOSE = 32
"""Rows and columns of a transpose on the Vector Engine, at most [isa, nc_transpose]."""
BN_STATS = 512
"""Elements per partition of one bn_stats, at most [isa, bn_stats]."""
ENGINE_ELEMENTS = {"sbuf": 64 * 1024, "psum": 4 * 1024}
"""Elements per partition that one instruction of an engine takes, at most [arch]."""
ACCESS_AXES = 4
"""Free axes of one instruction's access pattern [arch]."""
ACCESS_STRIDE = 2**15 - 1
"""Elements that an access pattern steps along one axis, at most: int16 [arch]."""

SBUF_BYTES = 176 * 1024
"""SBUF bytes per partition that a kernel may use: 192 KiB less the compiler's 16 KiB [sbuf]."""
SBUF_BUDGET = 170 * 1024
"""SBUF bytes per partition that plans keep to: 6 KiB below the limit for what no plan counts (a tile that is evicted
while the next one is made), since a program that misses by a little loads its operands again and again
(docs/kernels.md, "Room")."""
PSUM_BANK_BYTES = 2 * 1024
"""Bytes per partition of one PSUM bank [arch]."""
PSUM_BANKS = 8
"""PSUM banks [arch]."""

CLOCK_HZ = {"pe": 2.8e9, "scalar": 1.4e9, "vector": 1.12e9, "gpsimd": 1.4e9}
"""Clock of the Tensor, Scalar, Vector and GpSimd Engines [arch]."""
MIN_CYCLES = 64
"""Cycles from the start of one instruction to the start of the next, at least: MIN_II [isa]."""
GPSIMD_START = 150
"""Cycles before an instruction of the GpSimd Engine starts [isa, affine_select]."""
STALL_CYCLES = 72
"""Cycles that an instruction (on the Tensor Engine a pass over its data) takes beyond its formula: reading SBUF or PSUM
and writing back, some 60 by [perf]. Fitted on Trn1 profiles, docs/simulator.md."""
DMA_BYTES_PER_SECOND = 272e9
"""HBM bandwidth of the models: 16 DMA engines of 17 GB/s (`nki/deep-dives/nki-dma-bandwidth-guide.rst`, v2.31.1)."""
DMA_TRANSFER_SECONDS = 1.3e-6 / 16
"""What a transfer adds: 1.3 us from semaphore to start, 16 queues side by side (the same guide)."""
DMA_SHORT_RUN = 256
"""Contiguous bytes below which a descriptor is mostly overhead (the same guide); modelled as costing this many."""
OVERLAP = 1.15
"""Latency over the time of the busiest engine: what does not overlap. Fitted on Trn1 profiles, docs/simulator.md."""
ACTIVATION_ERROR = 2**-8
"""Relative error assumed of the Scalar Engine's piecewise polynomials: a unit in the last place of bfloat16. AWS
publishes none; on the device the functions are to be compared with a tolerance [isa, activation]."""
MODEL_ERROR = (-0.26, 0.58)
"""Measured over modelled latency, less one: the lowest and the highest of 14 Trn1 profiles, docs/simulator.md."""
MODEL_BAND = "measured {:+.0%} to {:+.0%}".format(*MODEL_ERROR)
"""The same for the reader of a modelled time."""
LONG_RUN = 2048
"""Contiguous bytes per partition below which a load counts as slow: the shortest run of AWS's tuned matmul [matmul]."""


def tiles(extent: int) -> int:
    """Number of 128-wide tiles that cover `extent`."""
    return (extent + PARTITIONS - 1) // PARTITIONS


def busy_seconds(engine: str, cycles: float, instructions: float) -> float:
    """MODEL of how long an engine is busy; on the Tensor Engine every pass over the data is an instruction."""
    return (cycles + STALL_CYCLES * instructions) / CLOCK_HZ[engine]


def dma_seconds(hbm_bytes: float, transfers: float, bandwidth: float = DMA_BYTES_PER_SECOND) -> float:
    """MODEL of how long DMA is busy; bytes of runs below DMA_SHORT_RUN count as that many."""
    return hbm_bytes / bandwidth + transfers * DMA_TRANSFER_SECONDS
