"""Running a traced program on numpy arrays: affine loops in seeded random order, never-written memory tracked."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import Expr
from nxdi_svd_plugin.simulator.program.dtypes import Array, rounded, storage
from nxdi_svd_plugin.simulator.program.extents import Extents, extents_of, whole_extents
from nxdi_svd_plugin.simulator.program.program import Alloc, Axes, Block, Instr, Loop, Operand, Storage, View

_SPOILT = {"tensor_tensor_scan": 1, "nc_transpose": 0}
"""Axis of an instruction along which one undefined element leaves none defined: all that a scan may have passed, and
what the Tensor Engine, which transposes by an identity matrix, multiplies by zero."""


class Machine:
    """Memory contents of one run; `executed[instr][extents]` counts runs of an instruction over a part of its space."""

    def __init__(self, strict: bool, seed: int, approximation: float = 0.0) -> None:
        self.strict, self.rng = strict, np.random.default_rng(seed)
        self.approximation, self.noise = approximation, np.random.default_rng([seed, 1])
        self.env: dict[Any, Any] = {}
        self.memory: dict[Storage, tuple[Array, Array | None]] = {}
        self.executed: defaultdict[Instr, Counter[Extents]] = defaultdict(Counter)

    def allocate(self, store: Storage) -> None:
        """(Re)start a tensor's life: memory that holds nothing."""
        if store.data is not None:
            self.memory[store] = (store.data, None)
        elif store in self.memory:
            written = self.memory[store][1]
            if written is not None and store.buffer != "shared_hbm":
                written.fill(False)
        else:
            size = prod(store.shape)
            self.memory[store] = (np.zeros(size, storage(store.dtype)), np.zeros(size, np.bool_))

    def run(self, block: Block) -> None:
        """Execute a block."""
        for node in block.nodes:
            if isinstance(node, Instr):
                self.step(node)
            elif isinstance(node, Alloc):
                self.allocate(node.storage)
            else:
                self.iterate(node)

    def iterate(self, loop: Loop) -> None:
        """Execute a loop, in a random order that is not the written one if its iterations must be independent."""
        order = np.arange(len(loop.values))
        if loop.shuffled:
            shuffled = self.rng.permutation(order)
            order = order[::-1] if np.array_equal(shuffled, order) else shuffled
        for at in order:
            if loop.var is not None:
                self.env[loop.var] = loop.values[int(at)]
                self.run(loop.bodies[0])
            else:
                self.run(loop.bodies[int(at)])

    def region(self, instr: Instr, operand: Operand, extents: Extents | None = None) -> tuple[Any, Array, Array | None]:
        """Numpy views of an operand's data and written flags; with an index tile, flat addresses and the whole data."""
        view = operand.view
        data, written = self.memory[view.base]
        offset, shape = int(view.offset.evaluate(self.env)), view.shape
        if extents is not None:
            narrowed = list(shape)
            for at, axis in enumerate(operand.axes):
                if axis is not None:
                    low, high = extents[axis]
                    offset, narrowed[at] = offset + low * view.strides[at], high - low
            shape = tuple(narrowed)
        if view.indirect is not None:
            return self._addresses(instr, view, view.indirect, offset, shape), data, written
        size = data.itemsize
        values: Array = np.ndarray(shape, data.dtype, data, offset * size, [s * size for s in view.strides])
        if written is None:
            return None, values, None
        return None, values, np.ndarray(shape, np.bool_, written, offset, view.strides)

    def _addresses(
        self, instr: Instr, view: View, indirect: tuple[View, int, int], offset: int, shape: tuple[int, ...]
    ) -> Array:
        """Flat addresses; -1 where the index lies outside of its dimension, which `dma_copy` may be told to skip."""
        tile, stride, size = indirect
        _, index, known = self.region(instr, Operand(tile, tuple(range(tile.ndim))))
        if known is not None and not known.all():
            fail(f"{instr.op}: the index tile {tile!r} was never written", instr.place)
        column = index.reshape(index.shape[0], *[1] * (len(shape) - 1)).astype(np.int64)[: shape[0]]
        inside = (column >= 0) & (column < size)
        flat: Array = offset + column * stride
        for at, (count, step) in enumerate(zip(shape, view.strides, strict=True)):
            flat = flat + (np.arange(count) * step).reshape([-1 if i == at else 1 for i in range(len(shape))])
        if not inside.all() and not instr.info.get("skip"):
            self.out_of_bounds(instr, int(column[~inside][0]), size, flat, self.memory[view.base][0].size)
        return np.where(inside, flat, -1) if self.strict or instr.info.get("skip") else flat

    def read(self, instr: Instr, operand: Operand, extents: Extents | None) -> tuple[Array, Array | None]:
        """Values of an operand, and its written flags if some are missing."""
        address, data, written = self.region(instr, operand, extents)
        if address is not None:
            inside = address >= 0
            data = data[np.where(inside, address, 0)]
            written = None if written is None else written[np.where(inside, address, 0)] | ~inside
            if instr.info.get("skip"):
                data = np.where(inside, data, self.region(instr, instr.write, extents)[1])
        if written is not None and not written.all():
            if self.strict:
                fail(f"{instr.op} reads memory of {operand.view!r} that was never written", instr.place)
            return data, written
        return data, None

    def out_of_bounds(self, instr: Instr, index: int, size: int, flat: Array, total: int) -> None:
        """Raise for an index tile that leaves its dimension: SimulatorError for our kernels.

        For other people's it is an IndexError in numpy's words, and only where the address leaves the tensor.
        """
        if self.strict:
            fail(f"{instr.op}: index {index} is out of bounds of a dimension of {size} (index tile)", instr.place)
        beyond = flat[(flat < 0) | (flat >= total)]
        if beyond.size:
            raise IndexError(f"index {int(beyond[0])} is out of bounds for axis 0 with size {total}")

    def step(self, instr: Instr) -> None:
        """Execute one instruction over the part of its space that the mask leaves."""
        extents = extents_of(instr, self.env) if instr.mask else None
        self.executed[instr][extents or whole_extents(instr)] += 1
        if extents is not None and any(low >= high for low, high in extents):
            return
        operands = [self.read(instr, operand, extents) for operand in instr.reads]
        indices = [self.index(instr, expr, extents or whole_extents(instr)) for expr in instr.indices]
        values = np.asarray(instr.compute(*[data for data, _ in operands], *indices))
        if self.approximation and instr.info.get("approximate"):
            values = values * (1 + self.noise.uniform(-self.approximation, self.approximation, values.shape))
        values = rounded(values, instr.dtype)
        address, target, written = self.region(instr, instr.write, extents)
        if address is not None:
            self.scatter(instr, address, target, written, values)
            return
        if instr.write.view.dtype != instr.dtype:
            values = rounded(values, instr.write.view.dtype)
        self.place(instr, target, written, values)
        if written is not None:
            missing = [(read.axes, flags) for read, (_, flags) in zip(instr.reads, operands, strict=True)]
            known = self.known(instr, [(axes, flags) for axes, flags in missing if flags is not None])
            written[...] = known & written if instr.accumulate else known

    def index(self, instr: Instr, expr: Expr, extents: Extents) -> Array:
        """Values of an index expression over the covered part of the space."""
        env, rank = dict(self.env), len(extents)
        for axis in expr.axes():
            values = np.arange(*extents[axis.position])
            env[axis] = values.reshape([-1 if at == axis.position else 1 for at in range(rank)])
        return np.broadcast_to(expr.evaluate(env), [high - low for low, high in extents])

    def place(self, instr: Instr, target: Array, written: Array | None, values: Array) -> None:
        """Write or accumulate into the destination."""
        if instr.accumulate:
            if written is not None and not (written.all() if self.strict else written.any()):
                fail(f"{instr.op} accumulates into memory that was never written; start from nl.zeros", instr.place)
            target[...] = rounded(target + values, instr.write.view.dtype)
        elif "reduce" in instr.info and written is not None:
            first = ~written
            merged = rounded(instr.info["reduce"](target, values), instr.write.view.dtype)
            target[...] = np.where(first, values, merged)
        else:
            target[...] = values

    def known(self, instr: Instr, missing: list[tuple[Axes, Array]]) -> Array:
        """Which results are defined when some inputs are not; HBM never receives an undefined value.

        `missing` are the written flags of such inputs. A result is defined if all that it depends on is.
        """
        if missing and instr.write.view.buffer in ("hbm", "shared_hbm"):
            fail(f"{instr.op} stores memory that was never written", instr.place)
        made, spoilt, known = instr.write.axes, _SPOILT.get(instr.op), np.ones((1,) * len(instr.write.axes), np.bool_)
        for axes, flags in missing:
            gone = tuple(at for at, axis in enumerate(axes) if axis not in made or axis in (None, spoilt))
            left = [axis for at, axis in enumerate(axes) if at not in gone]
            flags = np.asarray(flags.all(axis=gone)).transpose([left.index(axis) for axis in made if axis in left])
            sizes = iter(flags.shape)
            known = known & flags.reshape([next(sizes) if axis in left else 1 for axis in made])
        return known

    def scatter(self, instr: Instr, address: Array, data: Array, written: Array | None, values: Array) -> None:
        """Indirect store, optionally adding to what is there."""
        inside = address >= 0
        values, address = np.broadcast_to(values, address.shape)[inside], address[inside]
        if instr.info.get("rmw"):
            if written is not None and not written[address].all():
                fail(f"{instr.op} accumulates into memory that was never written", instr.place)
            np.add.at(data, address, values)
        else:
            data[address] = rounded(values, instr.write.view.dtype)
        if written is not None:
            written[address] = True

    def fetch(self, output: View) -> Array:
        """An output's values in its own type; in a strict run all of them must have been written."""
        data, written = self.memory[output.base]
        if self.strict and written is not None and not written.all():
            fail(f"{int((~written).sum())} elements of output {output!r} were never written", output.base.place)
        return data.reshape(output.shape).astype(output.dtype)


def execute(top: Block, storages: list[Storage], strict: bool, seed: int, approximation: float = 0.0) -> Machine:
    """Run a program on fresh memory, after the storages that hold inputs and constants have been filled."""
    machine = Machine(strict, seed, approximation)
    for store in storages:
        if store.data is not None:
            machine.allocate(store)
    with np.errstate(all="ignore"):
        machine.run(top)
    return machine
