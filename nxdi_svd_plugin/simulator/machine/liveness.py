"""On-chip memory over the course of a traced program: which tensors are alive where.

The rule (docs/simulator.md): a tensor at home in block D lives from its first write to its last access, in program
order. An access inside a loop below D covers that whole loop. A tensor at home in a loop body is one buffer, reused by
every iteration. Sizes are bytes per partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nxdi_svd_plugin.simulator.machine.homes import Home, filled_where_needed
from nxdi_svd_plugin.simulator.program.program import Block, Instr, Loop, Operand, Storage


@dataclass
class Life:
    """Positions of the first write and of the last access, in program order."""

    storage: Storage
    home: Home
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


def lives(top: Block, homes: Mapping[Storage, Home]) -> list[Life]:
    """Live ranges of all on-chip tensors."""
    walk = _Walk()
    walk.block(top)
    found: dict[Storage, Life] = {}
    for position, instr, operand, writes in walk.touched:
        store = operand.view.base
        if not store.on_chip or filled_where_needed(instr, homes[store]):
            continue
        first = last = position
        block: Block | None = instr.block
        while block is not None and block is not homes[store].block:
            if block.loop is not None and block.loop.kind != "static":
                first, last = walk.spans[block]
            block = block.parent
        life = found.setdefault(store, Life(store, homes[store], first, last))
        life.first, life.last = min(life.first, first), max(life.last, last)
        if writes and instr.engine == "dma" and homes[store].block.loops():
            life.prefetched = True
    return list(found.values())


def peak(found: list[Life], size: Mapping[Storage, int]) -> tuple[int, int]:
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
    return sorted(alive, key=lambda life: -life.home.size)
