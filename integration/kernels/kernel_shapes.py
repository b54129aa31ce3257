"""The shapes that are timed and profiled: a case is a list of kernel calls whose costs add up."""

from nxdi_svd_plugin.kernels.measure.calls import (
    Call,
    Share,
    dense_mlp,
    fused_down,
    fused_mlp,
    fused_up_gate,
    unfused_down,
    unfused_up_gate,
)
from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.kernels.tiling.decode import TOKENS


def _projection(tokens: int, inputs: int, rank: int, outputs: int) -> dict[str, list[Call]]:
    return {
        "dense": [Call("matmul", ((inputs, tokens), (inputs, outputs)))],
        "unfused": [
            Call("matmul", ((inputs, rank), (inputs, tokens))),
            Call("matmul", ((rank, tokens), (rank, outputs))),
        ],
        "xuv": [Call("xuv", ((tokens, inputs), *packed_shapes(inputs, rank, outputs)))],
    }


def _mlp(tokens: int, hidden: int, rank: int, intermediate: int) -> dict[str, list[Call]]:
    pair = Share(rank)
    unfused = unfused_up_gate(tokens, hidden, intermediate, pair, pair)
    few = {"mlp": [fused_mlp(tokens, hidden, intermediate, pair, pair, pair)]} if tokens <= TOKENS else {}
    return {
        **few,
        "dense mlp": dense_mlp(tokens, hidden, intermediate),
        "unfused mlp": [*unfused, *unfused_down(tokens, hidden, intermediate, pair)],
        "up_gate": [fused_up_gate(tokens, hidden, intermediate, pair, pair)],
        "down": [fused_down(tokens, hidden, intermediate, pair)],
    }


def _interpolative(tokens: int, hidden: int, rank: int, intermediate: int) -> dict[str, list[Call]]:
    """The same with pivots side by side on the intermediate axis, `rank` of them whole tiles."""
    own = rank // 128
    gate, up, lower = (Share(rank, rank, ((first * own, (first + 1) * own),)) for first in range(3))
    few = {"interpolative mlp": [fused_mlp(tokens, hidden, intermediate, gate, up, lower)]} if tokens <= TOKENS else {}
    return {
        **few,
        "interpolative up_gate": [fused_up_gate(tokens, hidden, intermediate, gate, up)],
        "interpolative down": [fused_down(tokens, hidden, intermediate, lower)],
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
