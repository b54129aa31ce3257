"""The paper's block-size model: Eq. 10 (arithmetic intensity) and Eq. 11 (peak SBUF usage).

Y = X·U·V with X [tokens, m], U [m, r], V [r, n]; `strip` (the paper's B) rows of X are handled at once.
"""

import math

from nxdi_svd_plugin.hardware import PARTITIONS, tiles


def arithmetic_intensity(tokens: int, m: int, r: int, n: int, strip: int, itemsize: int = 2) -> float:
    """Eq. 10: 2·S·r·(m+n) / ( s·[ S·(m+n) + ⌈S/B⌉·r·(m+n) ] ), in flop per byte of HBM traffic."""
    flops = 2 * tokens * r * (m + n)
    traffic = itemsize * (tokens * (m + n) + math.ceil(tokens / strip) * r * (m + n))
    return flops / traffic


def peak_sbuf_bytes(m: int, r: int, n_block: int, strip: int, itemsize: int = 2, in_flight: int = 1) -> int:
    """Eq. 11: SBUF bytes per partition, the larger of the two phases.

    Phase 1 holds the X strip, the growing (X·U)ᵀ strip and `in_flight` U tiles of 128 columns; phase 2 holds the
    strip, `in_flight` V tiles of `n_block` columns and one output tile [strip, n_block].
    The formula itself is missing from the paper's text; this is its description in words (section 4.2.1).
    """
    x_strip = tiles(m) * strip
    t_strip = tiles(r) * strip
    phase_1 = x_strip + t_strip + in_flight * tiles(m) * PARTITIONS
    phase_2 = t_strip + in_flight * tiles(r) * n_block + tiles(strip) * n_block
    return itemsize * max(phase_1, phase_2)
