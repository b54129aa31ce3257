"""The counters of one simulated run, and the analysis that fills them from the traced program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nxdi_svd_plugin.hardware import (
    DMA_BYTES_PER_SECOND,
    DMA_SHORT_RUN,
    OVERLAP,
    PSUM_BANKS,
    SBUF_BYTES,
    busy_seconds,
    dma_seconds,
)
from nxdi_svd_plugin.simulator.machine import invariant, liveness
from nxdi_svd_plugin.simulator.machine.cost import Cost, instruction_cost
from nxdi_svd_plugin.simulator.machine.homes import homes as homes_of
from nxdi_svd_plugin.simulator.machine.overflow import Overflow, overflow
from nxdi_svd_plugin.simulator.place import describe, fail
from nxdi_svd_plugin.simulator.program.program import Block, Instr, instructions


@dataclass(frozen=True)
class Trace:
    """What a kernel moved and computed, counted by the simulator (no device was involved).

    Bytes are totals; `sbuf_*_bytes` are per partition. Cycles are in each engine's own clock. HBM bytes include the
    spill traffic.
    """

    hbm_read_bytes: int
    hbm_write_bytes: int
    spill_save_bytes: int
    spill_reload_bytes: int
    matmul_flops: int
    transpose_flops: int
    pe_cycles: int
    scalar_cycles: int
    vector_cycles: int
    gpsimd_cycles: int
    issues: dict[str, int]  # instructions of each engine; passes over the data on the Tensor Engine
    psum_seconds: float
    dma_count: int
    dma_runs: dict[int, int]  # contiguous bytes per descriptor -> number of descriptors
    sbuf_peak_bytes: int
    sbuf_prefetch_peak_bytes: int  # the peak if every DMA-filled tile of a loop body exists twice
    psum_peak_banks: int
    instructions: int
    dma_bytes_per_second: float = DMA_BYTES_PER_SECOND
    warnings: list[str] = field(default_factory=list)

    @property
    def hbm_bytes(self) -> int:
        """HBM bytes read and written."""
        return self.hbm_read_bytes + self.hbm_write_bytes

    @property
    def mean_dma_run_bytes(self) -> float:
        """Average contiguous run of a DMA descriptor."""
        number = sum(self.dma_runs.values())
        return sum(length * n for length, n in self.dma_runs.items()) / number if number else 0.0

    @property
    def modelled_seconds(self) -> dict[str, float]:
        """MODEL: busy time of each engine and of DMA; `psum` is what Scalar and Vector Engine need PSUM for in turn.

        The formulas and their constants are in hardware.py, what they were fitted on in docs/simulator.md.
        """
        cycles = {
            "pe": self.pe_cycles,
            "scalar": self.scalar_cycles,
            "vector": self.vector_cycles,
            "gpsimd": self.gpsimd_cycles,
        }
        busy = {engine: busy_seconds(engine, count, self.issues.get(engine, 0)) for engine, count in cycles.items()}
        short = sum((DMA_SHORT_RUN - run) * number for run, number in self.dma_runs.items() if run < DMA_SHORT_RUN)
        dma = dma_seconds(self.hbm_bytes + short, self.dma_count, self.dma_bytes_per_second)
        return {**busy, "psum": self.psum_seconds, "dma": dma}

    @property
    def modelled_bottleneck(self) -> str:
        """MODEL: the engine (or dma) that is busy longest."""
        busy = self.modelled_seconds
        return max(busy, key=lambda engine: busy[engine])

    @property
    def modelled_latency_us(self) -> float:
        """MODEL, not a measurement: OVERLAP times that of the busiest engine; how far off: `hardware.MODEL_ERROR`."""
        return OVERLAP * max(self.modelled_seconds.values()) * 1e6


def analyse(
    top: Block,
    counts: Mapping[Instr, Mapping[Any, int]],
    strict: bool,
    bandwidth: float,
    warnings: list[str],
    hoist: bool = False,
) -> Trace:
    """Sum the costs and check the memory limits; `hoist`: loads that are the same in every iteration are done once."""
    homes = homes_of(top)
    hoists = invariant.hoisted_loads(top) if hoist else {}
    total, executed = Cost(), 0
    for instr, by_extents in counts.items():
        moved = hoists.get(instr.write.view.base)
        for extents, times in by_extents.items():
            if all(low < high for low, high in extents):
                times = times // moved.repeats if moved else times
                total.add(instruction_cost(instr, extents), times)
                executed += times
    found = liveness.lives(top, invariant.rehome(homes, hoists))
    sbuf, prefetch, psum = _peaks(found)
    extra = Overflow()
    if sbuf > SBUF_BYTES and not strict:
        extra = overflow([life for life in found if life.storage.buffer == "sbuf"], counts, hoists)
    _check(found, strict, sbuf)
    return Trace(
        hbm_read_bytes=total.hbm_read_bytes + extra.reload + extra.reread,
        hbm_write_bytes=total.hbm_write_bytes + extra.save,
        spill_save_bytes=extra.save,
        spill_reload_bytes=extra.reload,
        matmul_flops=total.matmul_flops,
        transpose_flops=total.transpose_flops,
        pe_cycles=total.cycles["pe"],
        scalar_cycles=total.cycles["scalar"],
        vector_cycles=total.cycles["vector"],
        gpsimd_cycles=total.cycles["gpsimd"],
        issues=dict(total.issues),
        psum_seconds=total.psum_seconds,
        dma_count=total.dma_count,
        dma_runs=dict(sorted(total.dma_runs.items())),
        sbuf_peak_bytes=sbuf,
        sbuf_prefetch_peak_bytes=prefetch,
        psum_peak_banks=psum,
        instructions=executed,
        dma_bytes_per_second=bandwidth,
        warnings=warnings,
    )


def _peaks(found: list[liveness.Life]) -> tuple[int, int, int]:
    sbuf = [life for life in found if life.storage.buffer == "sbuf"]
    psum = [life for life in found if life.storage.buffer == "psum"]
    plain = {life.storage: life.home.size for life in sbuf}
    double = {life.storage: life.home.size * (2 if life.prefetched else 1) for life in sbuf}
    used = {life.storage: life.home.banks for life in psum}
    return liveness.peak(sbuf, plain)[0], liveness.peak(sbuf, double)[0], liveness.peak(psum, used)[0]


def _check(found: list[liveness.Life], strict: bool, sbuf_peak: int) -> None:
    psum = [life for life in found if life.storage.buffer == "psum"]
    used, position = liveness.peak(psum, {life.storage: life.home.banks for life in psum})
    if used > PSUM_BANKS:
        first = liveness.at_position(psum, position)[0].storage
        fail(
            f"{used} PSUM banks are live at once, there are {PSUM_BANKS}; alive: {_names(psum, position)}", first.place
        )
    if strict and sbuf_peak > SBUF_BYTES:
        sbuf = [life for life in found if life.storage.buffer == "sbuf"]
        _, position = liveness.peak(sbuf, {life.storage: life.home.size for life in sbuf})
        first = liveness.at_position(sbuf, position)[0].storage
        fail(
            f"{sbuf_peak} bytes of SBUF per partition are live at once, {SBUF_BYTES} are usable; "
            f"alive: {_names(sbuf, position)}; use smaller blocks",
            first.place,
        )


def _names(found: list[liveness.Life], position: int) -> str:
    alive = liveness.at_position(found, position)[:6]
    return "; ".join(f"{life.home.size} B at {describe(life.storage.place)}" for life in alive)


def release_free_zeros(top: Block) -> None:
    """Zero fills of PSUM tiles that matmuls accumulate into cost nothing: the first matmul overwrites instead.

    Nor does the fill of a tensor with lazy initialization, which is the first write's business.
    """
    every = list(instructions(top))
    accumulated = {instr.write.view.base for instr in every if instr.accumulate}
    for instr in every:
        if instr.info.get("lazy"):
            instr.free = True
        elif instr.op == "memset" and instr.write.view.base in accumulated and instr.write.view.buffer == "psum":
            instr.free = instr.info["zero"]
