"""Where a tensor lives once the block dimensions that need not be alive at once are contracted.

A kernel may declare `t[16, 4, par_dim(128), 512]` at its top and use `t[i, j]` inside the loops i and j only.
A compiler keeps one tile of it, not 64. The rule: while every access lies in one loop below the tensor's block, and
all of them index one block dimension by `a * i + rest` with the same a for this loop's index i, where the values of
`rest` span at most one step of it, iterations touch disjoint parts. Then the tensor lives in the loop's body, and the
dimension is as long as the span of `rest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from nxdi_svd_plugin.hardware import PSUM_BANK_BYTES
from nxdi_svd_plugin.simulator.program.affine import LoopVar
from nxdi_svd_plugin.simulator.program.program import (
    Block,
    Instr,
    Loop,
    Operand,
    Storage,
    View,
    instructions,
    row_major,
)


@dataclass
class Home:
    """The block that a tensor lives in, and what it takes of every partition."""

    block: Block
    blocks: int  # tiles of the block dimensions
    block_bytes: int

    @property
    def size(self) -> int:
        """Bytes per partition."""
        return self.blocks * self.block_bytes

    @property
    def banks(self) -> int:
        """PSUM banks; a tile of the block dimensions straddles none."""
        together = PSUM_BANK_BYTES // self.block_bytes
        return -(-self.blocks // together) if together else self.blocks * -(-self.block_bytes // PSUM_BANK_BYTES)


@dataclass
class _Index:
    """`const + sum(coefficient * index)` of one block dimension."""

    const: int
    terms: dict[LoopVar, int]

    def span(self, without: LoopVar) -> tuple[int, int]:
        """Smallest and largest value of the part that does not belong to one loop."""
        low = high = self.const
        for var, coeff in self.terms.items():
            ends = [coeff * end for end in var.bounds()] if var is not without else [0]
            low, high = low + min(ends), high + max(ends)
        return low, high


def homes(top: Block) -> dict[Storage, Home]:
    """The home of every on-chip tensor of a program."""
    accesses: dict[Storage, list[tuple[Instr, Operand]]] = {}
    for instr in instructions(top):
        for operand in (*instr.reads, instr.write):
            if operand.view.base.on_chip and not _fills_whole(instr):
                accesses.setdefault(operand.view.base, []).append((instr, operand))
            elif operand.view.base.on_chip:
                accesses.setdefault(operand.view.base, [])
    return {store: _home(store, found) for store, found in accesses.items()}


def _fills_whole(instr: Instr) -> bool:
    """The fill of a tensor with block dimensions where it is declared: each part may be filled when it is needed."""
    return bool(instr.op == "memset" and instr.info.get("whole") and instr.write.view.base.par)


def filled_where_needed(instr: Instr, home: Home) -> bool:
    """True for a fill at the declaration of a tensor that lives in a loop below it."""
    return _fills_whole(instr) and home.block is not instr.write.view.base.block


def _home(store: Storage, accesses: list[tuple[Instr, Operand]]) -> Home:
    sizes = list(store.shape[: store.par])
    home = Home(store.block, prod(sizes), store.partition_bytes // prod(sizes))
    if not store.par or not accesses:
        return home
    indices = [_indices(store, operand.view) for _, operand in accesses]
    if any(index is None for index in indices):
        return home
    known: list[list[_Index]] = [index for index in indices if index is not None]
    while True:
        loop = _only_loop_below(home.block, [instr for instr, _ in accesses])
        if loop is None or not _contract(loop, known, sizes):
            home.blocks = prod(sizes)
            return home
        home.block = loop.bodies[0]


def _indices(store: Storage, view: View) -> list[_Index] | None:
    """The index of every block dimension; None if the view walks one of them or its offset is not plainly affine."""
    strides = row_major(store.shape)
    if any(count > 1 and step >= strides[store.par - 1] for count, step in zip(view.shape, view.strides, strict=True)):
        return None
    if not all(isinstance(atom, LoopVar) for atom in view.offset.terms):
        return None
    rest, found = view.offset.evaluate({var: var.start for var in view.offset.variables()}), []
    for stride in strides[: store.par]:
        found.append(_Index(rest // stride, {}))
        rest %= stride
    for var, coeff in view.offset.terms.items():
        dim = next((d for d, stride in enumerate(strides) if stride <= abs(coeff) and store.shape[d] > 1), None)
        if dim is None or coeff % strides[dim]:
            return None
        if dim < store.par:
            found[dim].terms[var] = coeff // strides[dim]
            found[dim].const -= found[dim].terms[var] * var.start
    return found


def _only_loop_below(block: Block, instrs: list[Instr]) -> Loop | None:
    """The traced loop of the block that all instructions are in, if there is one."""
    below = set()
    for instr in instrs:
        at: Block | None = instr.block
        while at is not None and at.parent is not block:
            at = at.parent
        below.add(at)
    body = below.pop()
    return body.loop if not below and body is not None and body.loop is not None and body.loop.var else None


def _contract(loop: Loop, indices: list[list[_Index]], sizes: list[int]) -> bool:
    """Take the loop's index out of the block dimension that it walks; False if iterations may share memory."""
    var: Any = loop.var
    for dim, size in enumerate(sizes):
        column = [index[dim] for index in indices]
        coefficients = {index.terms.get(var, 0) for index in column}
        if len(coefficients) > 1 or 0 in coefficients:
            continue
        spans = [index.span(var) for index in column]
        length = max(high for _, high in spans) - min(low for low, _ in spans) + 1
        if length <= abs(coefficients.pop() * loop.values.step):
            sizes[dim] = min(size, length)
            for index in column:
                del index.terms[var]
            return True
    return False
