"""Hardware numbers of one NeuronCore-v2 (Trn1) that the simulator enforces or converts with.

Sources: the Trainium/Inferentia2 architecture guide and the NKI API pages of aws-neuron-sdk v2.26.1
(`nki/arch/trainium_inferentia2_arch.rst`, `nki/api/nki/isa`); DMA bandwidth is derived from the profile in the NKI
performance guide.
"""

PARTITIONS = 128
STATIONARY_FREE = 128
MOVING_FREE = 512
BN_STATS_FREE = 512
VECTOR_TRANSPOSE = 32
ENGINE_FREE_SBUF = 64 * 1024
ENGINE_FREE_PSUM = 4 * 1024
ACCESS_AXES = 4  # free axes of one instruction's access pattern
ACCESS_STRIDE = 2**15 - 1  # elements

SBUF_PARTITION_BYTES = 176 * 1024  # 192 KiB less the 16 KiB that the compiler keeps
PSUM_BANK_BYTES = 2 * 1024
PSUM_BANKS = 8

CLOCK_HZ = {"pe": 2.8e9, "scalar": 1.4e9, "vector": 1.12e9, "gpsimd": 1.4e9}
MIN_CYCLES = 64  # minimum instruction initiation interval
DMA_BYTES_PER_SECOND = 190e9  # reached by AWS's tuned matmul with 2-4 KiB rows; the peak is 272e9
