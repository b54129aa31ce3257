"""The least HBM traffic of any choice of strips: an exhaustive search, the reference that the planner is held to.

It shares the planner's cost of a strip in SBUF (blocks.strip_sbuf_bytes) but none of its reasoning: strips of a call
may all differ, sub-strips of a strip may all differ, in steps of `unit` tokens, with every streamed-load size.
"""

from nxdi_svd_plugin.kernels.tiling.blocks import Buffers, strip_sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.limits import SBUF_BYTES
from nxdi_svd_plugin.kernels.tiling.planner import IN_FLIGHT, MAX_SUB_STRIP, buffer_choices


def least_hbm_bytes(chain: Chain, unit: int = 16, in_flight: int = IN_FLIGHT) -> int | None:
    """HBM bytes (read and written) of the best strips for `chain`; None if nothing fits.

    `in_flight`: loads of every streamed operand that must fit beside a strip; 2 as in the planner, so that DMA can
    overlap with compute; with 1 longer strips fit, and the tensor engine waits for every load.
    """
    unit = min(unit, chain.tokens)
    steps = -(-chain.tokens // unit)
    totals = []
    for buffers in set(buffer_choices(chain)):
        fewest = _fewest_sub_strips(chain, buffers, steps, unit, in_flight)
        best: list[float] = [0.0] + [float("inf")] * steps
        for covered in range(1, steps + 1):
            for strip, reads in fewest.items():
                if strip <= covered:
                    cost = best[covered - strip] + chain.v_bytes + reads * chain.u_bytes
                    best[covered] = min(best[covered], cost)
        totals.append(best[steps])
    least = min(totals)
    return None if least == float("inf") else chain.activation_bytes + int(least)


def _fewest_sub_strips(chain: Chain, buffers: Buffers, steps: int, unit: int, in_flight: int) -> dict[int, int]:
    """{strip length: fewest sub-strips that fill it}, lengths in steps, by trying every next sub-strip."""
    found: dict[int, tuple[int, ...]] = {0: ()}
    for done in range(steps):
        if done not in found:
            continue
        for size in range(1, min(steps - done, MAX_SUB_STRIP // unit) + 1):
            strip = (*found[done], size * unit)
            if strip_sbuf_bytes(chain, buffers, strip, in_flight, align=1) > SBUF_BYTES:
                break
            if done + size not in found or len(strip) < len(found[done + size]):
                found[done + size] = strip
    return {length: len(strip) for length, strip in found.items() if length}
