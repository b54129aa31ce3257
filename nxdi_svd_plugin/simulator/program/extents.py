"""What part of its space an instruction covers under its mask, for one value or for all values of the loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.affine import Axis, Expr
from nxdi_svd_plugin.simulator.program.program import Block, Instr

Extents = tuple[tuple[int, int], ...]  # [low, high) per axis; low >= high: nothing is executed


def _split(term: Expr) -> tuple[int | None, int, Expr]:
    """(axis, coefficient, rest) of a mask term."""
    for axis in term.axes():
        return axis.position, term.terms[axis], term.without_axes()
    return None, 0, term


def intervals(instr: Instr, env: Mapping[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Lower and upper ends per axis; works for integers and for arrays of loop values alike."""
    low: list[Any] = [0] * len(instr.space)
    high: list[Any] = list(instr.space)
    for term in instr.mask:
        axis, coeff, rest = _split(term)
        value = rest.evaluate(env)
        if axis is None:
            high[0] = np.where(np.asarray(value) >= 0, high[0], 0)
        elif coeff > 0:
            low[axis] = np.maximum(low[axis], -(value // coeff))
        else:
            high[axis] = np.minimum(high[axis], value // -coeff + 1)
    return low, high


def whole_extents(instr: Instr) -> Extents:
    """All of the space."""
    return tuple((0, n) for n in instr.space)


def extents_of(instr: Instr, env: Mapping[Any, int]) -> Extents:
    """The covered part for one value of every loop index."""
    low, high = intervals(instr, env)
    return tuple((int(a), max(int(a), int(b))) for a, b in zip(low, high, strict=True))


def values_over_loops(expr: Expr, block: Block) -> Any:
    """Every value that a loop expression takes in a block, once or more often."""
    loops = [loop for loop in block.loops() if loop.var in expr.variables()]
    grids = np.meshgrid(*[np.asarray(loop.values) for loop in loops], indexing="ij")
    values = expr.evaluate({loop.var: grid.ravel() for loop, grid in zip(loops, grids, strict=True)})
    return np.asarray(values).reshape(-1)


def all_extents(instr: Instr) -> Counter[Extents]:
    """How often each covered part occurs over all iterations of the loops; also proves masked accesses in bounds."""
    loops = [loop for loop in instr.block.loops() if loop.var is not None]
    if not instr.mask:
        return Counter({whole_extents(instr): prod(len(loop.values) for loop in loops)})
    terms = [*instr.mask, *(expr for expr, _ in instr.checks)]
    used = set().union(*(term.variables() for term in terms))
    involved = [loop for loop in loops if loop.var in used]
    times = prod(len(loop.values) for loop in loops if loop.var not in used)
    grids = np.meshgrid(*[np.asarray(loop.values) for loop in involved], indexing="ij")
    env: dict[Any, Any] = {loop.var: grid.ravel() for loop, grid in zip(involved, grids, strict=True)}
    count = prod(len(loop.values) for loop in involved)
    low, high = (np.stack([np.broadcast_to(end, count) for end in ends], axis=1) for ends in intervals(instr, env))
    high = np.maximum(low, high)
    _prove_in_bounds(instr, env, low, high)
    rows, numbers = np.unique(np.concatenate([low, high], axis=1), axis=0, return_counts=True)
    rank = len(instr.space)
    found: Counter[Extents] = Counter()
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        found[tuple(zip(row[:rank], row[rank:], strict=True))] += number * times
    return found


def _prove_in_bounds(instr: Instr, env: dict[Any, Any], low: Any, high: Any) -> None:
    active = (low < high).all(axis=1)
    for expr, size in instr.checks:
        rest = expr.without_axes().evaluate(env)
        smallest = largest = np.broadcast_to(np.asarray(rest), len(low))
        for axis in expr.axes():
            coeff = expr.terms[Axis(axis.position, axis.size)]
            ends = coeff * low[:, axis.position], coeff * (high[:, axis.position] - 1)
            smallest, largest = smallest + np.minimum(*ends), largest + np.maximum(*ends)
        wrong = active & ((smallest < 0) | (largest >= size))
        if wrong.any():
            at = int(np.argmax(wrong))
            fail(
                f"{instr.op}: the mask leaves index range {smallest[at]}..{largest[at]}, out of "
                f"bounds for a dimension of {size}",
                instr.place,
            )
