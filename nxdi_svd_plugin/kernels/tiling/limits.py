"""The numbers of a NeuronCore-v2 that the block-size model uses (AWS architecture guide, SDK 2.26.1)."""

PARTITIONS = 128
"""Rows of SBUF and PSUM; also the largest contraction and the largest stationary width of one matmul."""
MOVING = 512
"""Largest moving width of one matmul: one PSUM bank of fp32."""
PSUM_BANKS = 8
SBUF_BYTES = 176 * 1024
"""SBUF bytes per partition that a kernel may use (192 KiB less the compiler's 16 KiB)."""
SBUF_TOTAL_BYTES = 192 * 1024
"""SBUF bytes per partition in all: the 24 MiB of the paper's Eq. 11."""
PE_HZ, VECTOR_HZ, SCALAR_HZ = 2.8e9, 1.12e9, 1.4e9
DMA_BYTES_PER_SECOND = 190e9
"""HBM bandwidth used for planning: what AWS's own profile of its matmul kernel reaches with 2-4 KiB rows."""
LONG_RUN = 2048
"""Contiguous bytes per partition below which Trn1's DMA engines become slow (AWS architecture guide)."""
INTENSITY_THRESHOLD = 222.0
"""flop/byte above which the paper calls a bf16 kernel compute-bound (section 4.2.1)."""


def tiles(extent: int) -> int:
    """Number of 128-wide tiles that cover `extent`."""
    return -(-extent // PARTITIONS)
