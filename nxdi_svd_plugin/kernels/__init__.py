"""The fused NKI kernels for Trn1, their block-size model and their references.

`pack(u, v, kernel=...)` puts plain factors into the layout that a kernel reads (`unpack` is the inverse); then

    up_gate(x, u_gate, v_gate, u_up, v_up) -> [I, S]      down(h_t, u, v) -> [S, H]
    mlp(x, u_gate, v_gate, u_up, v_up, u_down, v_down) -> [S, H], both at once for up to 128 tokens
    xuv(x, u, v, transposed_output=False)                  matmul(x_t, w), swiglu(gate, up), add(a, b): baselines, plain

These are `@nki.jit` kernels (of `neuronxcc` where it is installed, else of the simulator; kernels/nki.py decides).
The undecorated functions `up_gate_kernel`, `down_kernel`, `xuv_kernel` and `matmul_kernel` are for callers that choose
the target themselves, as AWS's kernels do: `neuronxcc.nki.jit(up_gate_kernel, platform_target="trn1")`.
`up_gate`, `down` and `mlp` also read interpolative factors: `pivots=`, with C of `pack(..., interpolative=True)`.
Every kernel takes S from its input and plans its own blocks; all token counts share one packed weight.
Names are loaded on first use, so importing this package costs nothing but itself.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "pack": "packing",
    "unpack": "packing",
    "up_gate": "fused_up_gate",
    "up_gate_kernel": "fused_up_gate",
    "down": "fused_down",
    "down_kernel": "fused_down",
    "mlp": "fused_mlp",
    "mlp_kernel": "fused_mlp",
    "xuv": "fused_xuv",
    "xuv_kernel": "fused_xuv",
    "matmul": "measure.baselines",
    "matmul_kernel": "measure.baselines",
    "swiglu": "measure.baselines",
    "add": "measure.baselines",
    "raw": "nki",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
