"""The fused kernels inside a traced NxDI model: when they run, why they do not, and the calls themselves.

The kernels need a Trn1 device and SDK 2.26 to 2.28 (NxDI 0.6 to 0.8). On the CPU and on other platforms the same
parameters go through PyTorch ops, which is logged once with the reason. Where a user asks for the kernels on Trn1 and
the SDK cannot run them, that is an error, never a fallback.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from neuronx_distributed.utils import cpu_mode
from torch_neuronx.utils import get_platform_target

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi import upstream
from nxdi_svd_plugin.nxdi.mlp_impl import FUSED

PLATFORM = "trn1"
logger = logging.getLogger(__name__)

Call = Callable[..., Any]


class Calls(NamedTuple):
    """The kernels as functions of tensors: up_gate(x, u_gate, v_gate, u_up, v_up), down(h_t, u, v) and, for few tokens,
    mlp(x, u_gate, v_gate, u_up, v_up, u_down, v_down).

    Factors, and h_t with them, may be lists with a tensor a group; up_gate then returns a tuple.

    All take `pivots=` of interpolative factors.
    """

    up_gate: Call
    down: Call
    mlp: Call


def runs_kernels(x: torch.Tensor) -> bool:
    """Whether `mlp_impl="svd_fused"` runs the kernels for this input; logs the reason once where it does not.

    Raises:
        NxdiError: x is on a Trn1 device whose SDK cannot run the kernels.
    """
    reason = plain_reason(x)
    if reason is None:
        require_kernels()
        return True
    announce(reason)
    return False


def plain_reason(x: torch.Tensor) -> str | None:
    """Why this input takes the PyTorch ops, or None if it is on the kernels' platform."""
    if x.device.type == "cpu" or cpu_mode():
        return "NxDI runs on the CPU"
    platform = str(get_platform_target())
    return None if platform == PLATFORM else f"the kernels are written for {PLATFORM} and this is {platform}"


def require_kernels() -> None:
    """Raises NxdiError if the SDK on this Trn1 host cannot run the kernels."""
    sdk = upstream.sdk()
    if FUSED not in sdk.trn1:
        raise NxdiError(
            f"mlp_impl='svd_fused' needs Neuron SDK 2.26 to 2.28 on {PLATFORM}; this is SDK {sdk.release} (NxDI "
            f"{sdk.nxdi}): {sdk.note}. Use one of those SDKs, or mlp_impl='svd'"
        )
    from nxdi_svd_plugin.kernels.nki import SOURCE

    if SOURCE != "neuronxcc":
        raise NxdiError(
            "mlp_impl='svd_fused' needs the Neuron compiler's NKI (neuronxcc.nki), which does not import here; install "
            "the Neuron SDK's neuronx-cc, unset NXDI_SVD_NKI, or use mlp_impl='svd'"
        )


@functools.cache
def announce(reason: str) -> None:
    """Log once that the factors run in PyTorch ops."""
    logger.warning("mlp_impl='svd_fused' runs as PyTorch ops, not as NKI kernels: %s", reason)


@functools.lru_cache(maxsize=1)
def kernel_calls() -> Calls:
    """The kernels compiled into the traced graph (`neuronxcc.nki.jit`); built at the first use.

    Each graph traces them with its own token count, so prefill and token generation get their own block plans.
    """
    from nxdi_svd_plugin.kernels import down_kernel, mlp_kernel, up_gate_kernel
    from nxdi_svd_plugin.kernels.nki import nki

    target = get_platform_target()
    return Calls(*(nki.jit(kernel, platform_target=target) for kernel in (up_gate_kernel, down_kernel, mlp_kernel)))
