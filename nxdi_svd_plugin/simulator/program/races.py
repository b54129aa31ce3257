"""Iterations of an affine loop or grid that touch what another one writes: found where it is a matter of offsets.

NKI asks that iterations of `affine_range` are independent (`nki/api/nki/language/__init__.py`, aws-neuron-sdk v2.26.1).
"""

from __future__ import annotations

from collections import defaultdict

from nxdi_svd_plugin.simulator.place import fail
from nxdi_svd_plugin.simulator.program.program import Block, Instr, Loop, Storage, View, instructions

Access = tuple[Instr, View, bool]


def check_races(top: Block) -> None:
    """Raise for two accesses of one tensor, one of them a write, that are a constant apart and meet in two iterations.

    Found are contiguous tiles of equal steps without masks; sums that several iterations add to are no races.
    """
    found: defaultdict[tuple[Loop, Storage], list[Access]] = defaultdict(list)
    for instr in instructions(top):
        if instr.mask or instr.accumulate or instr.info.get("inplace") or "reduce" in instr.info:
            continue
        accesses = [(instr, operand.view, False) for operand in instr.reads]
        for access in [*accesses, (instr, instr.write.view, True)]:
            inside = set(access[1].base.block.loops())
            for loop in instr.block.loops():
                if loop.shuffled and loop.var is not None and loop not in inside and not access[1].indirect:
                    found[loop, access[1].base].append(access)
    for (loop, _), accesses in found.items():
        for writer, made, writes in accesses:
            for other, used, _ in accesses if writes else ():
                if _meet(made, used, loop):
                    fail(
                        f"{writer.op} writes {made!r} where {other.op} accesses it in another iteration of an affine "
                        "loop or grid, whose order is free: use sequential_range",
                        writer.place,
                    )


def _meet(made: View, used: View, loop: Loop) -> bool:
    """Whether one iteration's tile overlaps another's: both walk the tensor by the same steps of the same loops."""
    if made.strides != used.strides or made.shape[:-1] != used.shape[:-1] or made.strides[-1] not in (0, 1):
        return False
    if made.offset.terms != used.offset.terms or loop.var not in made.offset.terms:
        return False
    step = abs(made.offset.terms[loop.var] * loop.values.step)
    apart, most = made.offset.const - used.offset.const, len(loop.values) - 1
    # iterations between the two at which -made.shape[-1] < apart + iterations * step < used.shape[-1]
    low = max(-most, (-made.shape[-1] - apart) // step + 1)
    high = min(most, -((apart - used.shape[-1]) // step) - 1)
    return low <= high and (low < 0 or high > 0)
