"""Loads that give the same tile in every iteration of a loop, and what it takes to do them once.

A compiler moves such a load out of the loop if what it brings fits: a load in the loops i, k of `w[k]` is done once for
every k, at the price of holding all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from nxdi_svd_plugin.hardware import SBUF_BYTES
from nxdi_svd_plugin.simulator.machine.homes import Home
from nxdi_svd_plugin.simulator.program.program import Block, Instr, Loop, Storage, View, instructions


@dataclass
class Hoist:
    """One load done `repeats` times less often, for `held` bytes per partition that live around a loop."""

    repeats: int
    held: int
    tile: int
    outside: Block


def tile_bytes(view: View) -> int:
    """Bytes per partition of a tile."""
    return prod(view.shape[1:]) * view.itemsize


def hoist(instr: Instr, view: View, tile: int, limit: int) -> Hoist | None:
    """The outermost loop out of which a read of `view` moves with at most `limit` bytes held, and all inside it."""
    used = view.offset.variables() | {var for term in instr.mask for var in term.variables()}
    held, repeats, best = tile, 1, None
    for block, loop in _enclosing(instr.block):
        if loop.kind == "grid" or loop.var is None:
            break
        if loop.var in used:
            held *= len(loop.values)
        elif held <= limit:
            repeats *= len(loop.values)
            best = Hoist(repeats, held, tile, block)
        else:
            break
    return best if best is not None and best.repeats > 1 else None


def _enclosing(block: Block) -> Iterator[tuple[Block, Loop]]:
    """The loops around a block, innermost first, each with the block that it stands in."""
    at: Block | None = block
    while at is not None and at.parent is not None:
        if at.loop is not None:
            yield at.parent, at.loop
        at = at.parent


def is_repeatable(store: Storage, writers: list[Instr]) -> bool:
    """A tile that one load fills from a kernel input or constant: it can be loaded again instead of being kept."""
    source = writers[0].reads[0].view if len(writers) == 1 and writers[0].reads else None
    return (
        source is not None
        and writers[0].engine == "dma"
        and not writers[0].accumulate
        and not source.base.mutable
        and source.indirect is None
        and store.buffer == "sbuf"
    )


def writers_of(top: Block) -> dict[Storage, list[Instr]]:
    """The instructions that write each tensor."""
    found: dict[Storage, list[Instr]] = {}
    for instr in instructions(top):
        found.setdefault(instr.write.view.base, []).append(instr)
    return found


def hoisted_loads(top: Block) -> dict[Storage, Hoist]:
    """The loads that move out of loops, each into at most all of SBUF."""
    found = {}
    for store, writers in writers_of(top).items():
        if is_repeatable(store, writers):
            moved = hoist(writers[0], writers[0].reads[0].view, tile_bytes(writers[0].write.view), SBUF_BYTES)
            if moved is not None:
                found[store] = moved
    return found


def rehome(homes: Mapping[Storage, Home], hoists: Mapping[Storage, Hoist]) -> dict[Storage, Home]:
    """Homes once the hoisted tiles live around their loops."""
    moved = {
        s: replace(homes[s], block=h.outside, blocks=h.held // h.tile, block_bytes=h.tile) for s, h in hoists.items()
    }
    return {**homes, **moved}
