"""What a compiler does about a program whose tensors do not fit in SBUF: loads repeated, tensors spilled.

A model, held against Trn1 profiles of 14 kernels (docs/simulator.md). While SBUF is over the limit, the tensor alive
there that costs the least traffic per byte gives way:

* a load that was moved out of loops moves back for as many of its tiles as have to go;
* a tensor that a load fills is loaded again, whole, by those who read it;
* any other gives up the excess: that share of its writes is saved to HBM and that share of its reads reloaded. Reads
  beside the write that they read from find the tile in SBUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from nxdi_svd_plugin.hardware import SBUF_BYTES
from nxdi_svd_plugin.simulator.machine import liveness
from nxdi_svd_plugin.simulator.machine.invariant import Hoist, hoist, is_repeatable, tile_bytes
from nxdi_svd_plugin.simulator.program.extents import Extents
from nxdi_svd_plugin.simulator.program.program import Instr, Operand, Storage

Counts = Mapping[Instr, Mapping[Extents, int]]


@dataclass
class Overflow:
    """HBM bytes of spills, and of loads done again beyond what the program loads by itself."""

    save: int = 0
    reload: int = 0
    reread: int = 0


@dataclass
class _Use:
    """Traffic of one tensor in bytes over the whole run."""

    writers: list[Instr] = field(default_factory=list)
    readers: list[tuple[Instr, Operand]] = field(default_factory=list)
    written: int = 0
    read: int = 0  # from elsewhere than beside the write
    tile: int = 0  # bytes per partition that one instruction touches


def overflow(found: list[liveness.Life], counts: Counts, hoists: Mapping[Storage, Hoist]) -> Overflow:
    """Make the tensors fit; what that costs.

    Args:
        found: live ranges of the SBUF tensors.
        counts: how often each instruction covers each part of its space.
        hoists: loads that were moved out of loops.
    """
    size = {life.storage: life.home.size for life in found}
    uses, result = _uses(counts), Overflow()
    while True:
        total, position = liveness.peak(found, size)
        if total <= SBUF_BYTES:
            return result
        alive = [life.storage for life in liveness.at_position(found, position)]
        alive = [s for s in alive if size[s] > uses[s].tile or s in hoists and size[s]]
        if not alive:
            return result  # every tile alive is in use; the device would fail or serialise
        victim = min(alive, key=lambda s: (_cost(uses[s], hoists.get(s), counts, size[s]) / size[s], s.place))
        size[victim] -= _give_way(victim, size[victim], total - SBUF_BYTES, uses[victim], hoists, counts, result)


def _give_way(
    victim: Storage,
    size: int,
    excess: int,
    use: _Use,
    hoists: Mapping[Storage, Hoist],
    counts: Counts,
    result: Overflow,
) -> int:
    """Charge what it costs that the tensor takes less; by how many bytes per partition it does."""
    if victim in hoists:
        tile = hoists[victim].tile
        share = min(size, -(-excess // tile) * tile)
        result.reread += _hoisting_saves(use, hoists[victim], counts) * share // hoists[victim].held
        return share
    if is_repeatable(victim, use.writers):
        result.reread += _reads(use, counts, size - use.tile) - use.written
        return size - use.tile
    share = min(size - use.tile, excess)
    result.save += use.written * share // size
    result.reload += _reads(use, counts, share) * share // size
    return share


def _cost(use: _Use, moved: Hoist | None, counts: Counts, size: int) -> int:
    if moved is not None:
        return _hoisting_saves(use, moved, counts)
    return use.written + use.read


def _hoisting_saves(use: _Use, moved: Hoist, counts: Counts) -> int:
    return use.written * (moved.repeats - 1) // moved.repeats


def _uses(counts: Counts) -> dict[Storage, _Use]:
    uses: dict[Storage, _Use] = {}
    for instr, by_extents in counts.items():
        if not by_extents:
            continue
        use = uses.setdefault(instr.write.view.base, _Use())
        use.writers.append(instr)
        use.written += _bytes(instr.write, by_extents)
        if not instr.info.get("split"):
            use.tile = max(use.tile, tile_bytes(instr.write.view))
    for instr, by_extents in counts.items():
        for operand in _read(instr):
            use = uses.setdefault(operand.view.base, _Use())
            use.tile = max(use.tile, tile_bytes(operand.view))
            if not _beside_its_write(instr, operand, use):
                use.readers.append((instr, operand))
                use.read += _bytes(operand, by_extents)
    return uses


def _read(instr: Instr) -> list[Operand]:
    """What an instruction reads: its operands, and its destination if it adds to what is there."""
    return [*instr.reads, instr.write] if "reduce" in instr.info else instr.reads


def _beside_its_write(instr: Instr, operand: Operand, use: _Use) -> bool:
    """The tile was written by an instruction of the same block, or is read a second time there."""
    writers = [w for w in use.writers if w is not instr]
    others = [(w.block, w.write) for w in writers] + [(reader.block, other) for reader, other in use.readers]
    return any(block is instr.block and other.view.same_place(operand.view) for block, other in others)


def _bytes(operand: Operand, by_extents: Mapping[Any, int]) -> int:
    total = 0
    for extents, times in by_extents.items():
        sizes = [1 if axis is None else extents[axis][1] - extents[axis][0] for axis in operand.axes]
        known = all(axis is not None for axis in operand.axes)
        elements = prod(sizes) if known else max(prod(sizes), prod(operand.view.shape))
        total += elements * operand.view.itemsize * times
    return total


def _reads(use: _Use, counts: Counts, freed: int) -> int:
    """Bytes that the readers fetch again; a fetch that is the same in every iteration of a loop moves out of it.

    What it then holds must be less than what giving way frees.
    """
    total = 0
    for instr, operand in use.readers:
        moved = hoist(instr, operand.view, tile_bytes(operand.view), freed)
        total += _bytes(operand, counts[instr]) // (moved.repeats if moved else 1)
    return total
