"""What AWS's public kernels do not do, refused on request (`aws_style=True`): the dialect has it, it may not compile.

NKI Beta 1 runs a kernel's Python and follows its calls into other functions. Not documented is how far that reaches; no
kernel of aws-neuron (nki-samples 0898a77, neuronx-distributed and the SDK's documentation 2.26 to 2.28) goes there,
with the exception that is named:

* a lambda, or a function as an argument of a kernel's own helper;
* a helper that returns tensors and takes none: stricter than AWS, of whose kernels one has such a helper
  (create_identity_for_transpose, nki-samples contributed/neuron-team-kernels/flash_paged_attn_varlen/utils.py);
* accumulation groups that take turns in one PSUM bank (err SCH713 where memory is allocated by hand, aws-neuron-sdk
  v2.26.1 nki/nki_direct_allocation_guide.rst).

A function behind `functools.lru_cache` is called as it is, so what it does is its own business.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import CO_GENERATOR, CO_VARARGS, CO_VARKEYWORDS
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType
from typing import Any

from nxdi_svd_plugin.hardware import PSUM_BANK_BYTES
from nxdi_svd_plugin.simulator.place import fail, own_code
from nxdi_svd_plugin.simulator.program.program import Block, Instr, Loop, Storage, View, instructions

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, functools.partial)
_LIBRARY = ("<", *{sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Where code is not a kernel's; "<": made by the library, a dataclass's methods for instance."""


@contextmanager
def watched(kernel: CodeType | None) -> Iterator[None]:
    """Refuses calls between the functions of a kernel that no AWS kernel makes, while it is traced."""
    before = sys.getprofile()
    sys.setprofile(_Watch(kernel))
    try:
        yield
    finally:
        sys.setprofile(before)


class _Watch:
    """A profile function: sees every call and return."""

    def __init__(self, kernel: CodeType | None) -> None:
        self.kernel = kernel
        self.shield: FrameType | None = None  # a cached or library function, below which nothing is looked at

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if self.shield is not None:
            if event == "return" and frame is self.shield:
                self.shield = None
        elif event in ("call", "return") and not own_code(frame.f_code):
            if event == "call" and (frame.f_code.co_filename.startswith(_LIBRARY) or _cached(frame)):
                self.shield = frame
            elif frame.f_code is not self.kernel:
                _check_call(frame) if event == "call" else _check_return(frame, value)


def _cached(frame: FrameType) -> bool:
    named = frame.f_globals.get(frame.f_code.co_name)
    wrapped = getattr(named, "__wrapped__", None)
    return hasattr(named, "cache_info") and getattr(wrapped, "__code__", None) is frame.f_code


def _check_call(frame: FrameType) -> None:
    if frame.f_code.co_name == "<lambda>":
        fail("a lambda inside a kernel: no AWS kernel has one; write a function of tensors at module level")
    for name, value in _arguments(frame).items():
        if isinstance(value, _FUNCTIONS):
            fail(
                f"{frame.f_code.co_name}({name}=...) is given a function: no AWS kernel hands one to a helper; call it "
                "by its name there, or pass a plain value that says which one"
            )


def _check_return(frame: FrameType, value: Any) -> None:
    if frame.f_code.co_flags & CO_GENERATOR or frame.f_code.co_name.startswith("<"):
        return
    if _holds_tensor(value) and not any(_holds_tensor(given) for given in _arguments(frame).values()):
        fail(
            f"{frame.f_code.co_name} takes no tensor and returns one: of AWS's kernels only one does that; make the "
            "tensor in the kernel and pass it in"
        )


def _arguments(frame: FrameType) -> dict[str, Any]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
    return {name: frame.f_locals[name] for name in code.co_varnames[:count] if name in frame.f_locals}


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, View) or (isinstance(value, (list, tuple)) and any(map(_holds_tensor, value)))


def refuse_interleaving(top: Block) -> None:
    """Refuses accumulation groups that take turns in one PSUM bank."""
    groups: dict[Storage, list[Instr]] = {}
    for instr in instructions(top):
        if instr.accumulate and instr.write.view.buffer == "psum":
            _refuse_turns(instr)
            groups.setdefault(instr.write.view.base, []).append(instr)
    for members in groups.values():
        _refuse_returns(members)


def _refuse_turns(instr: Instr) -> None:
    """A loop over places inside a loop of the sum: every place gets one term, then the next term comes."""
    view = instr.write.view
    inside = instr.block.loops()[len(view.base.block.loops()) :]
    summing = False
    for loop in inside:
        if _steps(view, loop) == 0:
            summing = summing or len(loop.values) > 1
        elif summing and len(loop.values) > 1 and _steps(view, loop) % PSUM_BANK_BYTES:
            _interleaved(instr)


def _steps(view: View, loop: Loop) -> int:
    """Bytes per partition between the places of two iterations of the loop."""
    if loop.var is None:
        return 0
    return int(view.offset.terms.get(loop.var, 0)) * loop.values.step * view.itemsize


def _refuse_returns(members: list[Instr]) -> None:
    """A sum that goes on after another in its bank has begun."""
    seen: list[tuple[Any, ...]] = []
    for instr in members:
        view = instr.write.view
        place = (
            tuple(sorted((id(var), step) for var, step in view.offset.terms.items())),
            view.offset.const,
            view.shape,
        )
        if place in seen[:-1] and any(_same_bank(view, other) for other in seen[seen.index(place) + 1 :]):
            _interleaved(instr)
        if not seen or seen[-1] != place:
            seen.append(place)


def _same_bank(view: View, place: tuple[Any, ...]) -> bool:
    bank = PSUM_BANK_BYTES // view.itemsize
    return bool(view.offset.terms) or bool(place[0]) or view.offset.const // bank == place[1] // bank


def _interleaved(instr: Instr) -> None:
    fail(
        "two accumulation groups take turns in one PSUM bank: finish one sum before the next begins (the loop over K "
        "innermost), or give each a tile of its own",
        instr.place,
    )
