"""On-chip memory over the course of a traced program: SBUF, PSUM banks, and what a compiler would have to spill.

The rule (docs/simulator.md): a tensor declared in block D lives from its first write to its last access, in program
order. An access inside a loop below D covers that whole loop. A tensor declared in a loop body is one buffer, reused by
every iteration. Sizes are bytes per partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from nxdi_svd_plugin.hardware import PSUM_BANK_BYTES, SBUF_BYTES
from nxdi_svd_plugin.simulator.program.extents import Extents
from nxdi_svd_plugin.simulator.program.program import Block, Instr, Loop, Operand, Storage


@dataclass
class Life:
    """Positions of the first write and of the last access, in program order."""

    storage: Storage
    first: int
    last: int
    prefetched: bool = False  # created in a loop body and filled by a DMA


class _Walk:
    def __init__(self) -> None:
        self.position = 0
        self.spans: dict[Block, tuple[int, int]] = {}
        self.touched: list[tuple[int, Instr, Operand, bool]] = []

    def block(self, block: Block) -> None:
        start = self.position
        for node in block.nodes:
            if isinstance(node, Loop):
                first = self.position
                for body in node.bodies:
                    self.block(body)
                for body in node.bodies:
                    self.spans[body] = (first, self.position - 1)
            elif isinstance(node, Instr):
                self.instruction(node)
        self.spans.setdefault(block, (start, self.position - 1))

    def instruction(self, instr: Instr) -> None:
        if not instr.free:
            self.touched += [(self.position, instr, operand, False) for operand in instr.reads]
            self.touched.append((self.position, instr, instr.write, True))
        self.position += 1


def lives(top: Block) -> list[Life]:
    """Live ranges of all on-chip tensors."""
    walk = _Walk()
    walk.block(top)
    found: dict[Storage, Life] = {}
    for position, instr, operand, writes in walk.touched:
        store = operand.view.base
        if not store.on_chip:
            continue
        first = last = position
        block: Block | None = instr.block
        while block is not None and block is not store.block:
            if block.loop is not None and block.loop.kind != "static":
                first, last = walk.spans[block]
            block = block.parent
        life = found.setdefault(store, Life(store, first, last))
        life.first, life.last = min(life.first, first), max(life.last, last)
        if writes and instr.engine == "dma" and store.block.loops():
            life.prefetched = True
    return list(found.values())


def banks(store: Storage) -> int:
    """PSUM banks that a tensor takes; a block (index of the dimensions before the partitions) straddles none."""
    blocks = prod(store.shape[: store.par])
    block_bytes = store.partition_bytes // blocks
    together = PSUM_BANK_BYTES // block_bytes
    return -(-blocks // together) if together else blocks * -(-block_bytes // PSUM_BANK_BYTES)


def peak(found: list[Life], size: dict[Storage, int]) -> tuple[int, int]:
    """Largest sum of sizes over all positions, and the position."""
    changes: dict[int, int] = {}
    for life in found:
        changes[life.first] = changes.get(life.first, 0) + size[life.storage]
        changes[life.last + 1] = changes.get(life.last + 1, 0) - size[life.storage]
    best = at = now = 0
    for position in sorted(changes):
        now += changes[position]
        if now > best:
            best, at = now, position
    return best, at


def at_position(found: list[Life], position: int) -> list[Life]:
    """Tensors alive at a position, largest first."""
    alive = [life for life in found if life.first <= position <= life.last]
    return sorted(alive, key=lambda life: -life.storage.partition_bytes)


def spill(found: list[Life], counts: dict[Instr, dict[Extents, int]]) -> tuple[int, int]:
    """Bytes saved to and reloaded from HBM so that SBUF fits, as a model of the compiler's choice.

    While a position is over the limit, the tensor alive there that costs the least traffic per byte gives up the
    excess. A tensor of which a share is spilled pays that share of its writes as saves and of its reads as reloads.
    """
    size = {life.storage: life.storage.partition_bytes for life in found}
    written, read = _traffic(counts)
    spilled: dict[Storage, int] = {}
    while True:
        total, position = peak(found, size)
        if total <= SBUF_BYTES:
            break
        alive = [life.storage for life in at_position(found, position) if size[life.storage] > 0]
        victim = min(alive, key=lambda s: ((written.get(s, 0) + read.get(s, 0)) / s.partition_bytes, s.place))
        share = min(size[victim], total - SBUF_BYTES)
        size[victim] -= share
        spilled[victim] = spilled.get(victim, 0) + share
    save = sum(written.get(s, 0) * share // s.partition_bytes for s, share in spilled.items())
    reload = sum(read.get(s, 0) * share // s.partition_bytes for s, share in spilled.items())
    return save, reload


def _traffic(counts: dict[Instr, dict[Extents, int]]) -> tuple[dict[Storage, int], dict[Storage, int]]:
    """Bytes written to and read from every SBUF tensor over the whole run."""
    written: dict[Storage, int] = {}
    read: dict[Storage, int] = {}
    for instr, by_extents in counts.items():
        for operand, table in [*((o, read) for o in instr.reads), (instr.write, written)]:
            view = operand.view
            if view.buffer != "sbuf":
                continue
            for extents, times in by_extents.items():
                sizes = [1 if axis is None else extents[axis][1] - extents[axis][0] for axis in operand.axes]
                table[view.base] = table.get(view.base, 0) + prod(sizes) * view.itemsize * times
    return written, read
