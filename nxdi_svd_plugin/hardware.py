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
DMA_BYTES_PER_SECOND = 190e9
"""HBM bandwidth of the models: what the profile of AWS's tuned matmul in [perf] comes to, with runs of 2 to 4 KiB."""
LONG_RUN = 2048
"""Contiguous bytes per partition below which a load counts as slow: the shortest run of AWS's tuned matmul [matmul]."""


def tiles(extent: int) -> int:
    """Number of 128-wide tiles that cover `extent`."""
    return -(-extent // PARTITIONS)
