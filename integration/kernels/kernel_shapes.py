"""The shapes that are timed and profiled: a case is a list of kernel calls whose costs add up."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One kernel launch: the kernel's name, its inputs' shapes, all bf16, and its keyword arguments."""

    kernel: str
    shapes: tuple[tuple[int, int], ...]
    options: dict[str, Any] = field(default_factory=dict)


def packed(inputs: int, rank: int, outputs: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `pack(u, v)`."""
    return (128, -(-inputs // 128) * rank), (128, -(-rank // 128) * outputs)


def _projection(tokens: int, inputs: int, rank: int, outputs: int) -> dict[str, list[Call]]:
    return {
        "dense": [Call("matmul", ((inputs, tokens), (inputs, outputs)))],
        "unfused": [
            Call("matmul", ((inputs, rank), (inputs, tokens))),
            Call("matmul", ((rank, tokens), (rank, outputs))),
        ],
        "xuv": [Call("xuv", ((tokens, inputs), *packed(inputs, rank, outputs)))],
    }


def _mlp(tokens: int, hidden: int, rank: int, intermediate: int) -> dict[str, list[Call]]:
    first = packed(hidden, rank, intermediate)
    return {
        "up_gate": [Call("up_gate", ((tokens, hidden), *first, *first))],
        "down": [Call("down", ((intermediate, tokens), *packed(intermediate, rank, hidden)))],
    }


def _interpolative(tokens: int, hidden: int, rank: int, intermediate: int) -> dict[str, list[Call]]:
    """The same with pivots side by side on the intermediate axis, `rank` of them whole tiles."""
    own, made = rank // 128, intermediate - rank
    gate, up, lower = ((0, own),), ((own, 2 * own),), ((2 * own, 3 * own),)
    first, shape = packed(hidden, rank, made), (intermediate, tokens)
    return {
        "interpolative up_gate": [Call("up_gate", ((tokens, hidden), *first, *first), {"pivots": (gate, up)})],
        "interpolative down": [Call("down", (shape, *packed(made, rank, hidden)), {"pivots": lower})],
    }


CASES: dict[str, list[Call]] = {}
for _tokens in (1024, 2048, 4096, 8192, 16384, 32768):  # DeepSeek-V3 up_proj, the paper's section 5.2
    for _name, _calls in _projection(_tokens, 7168, 4096, 18432).items():
        CASES[f"{_name} S={_tokens} 7168x4096x18432"] = _calls
for _tokens in (1, 8, 2048):  # Llama-3.2-1B at ratio 0.05
    for _name, _calls in _mlp(_tokens, 2048, 1536, 8192).items():
        CASES[f"{_name} S={_tokens} 2048x1536x8192"] = _calls
    for _name, _calls in _interpolative(_tokens, 2048, 1920, 8192).items():
        CASES[f"{_name} S={_tokens} 2048x1920x8192"] = _calls
