"""What a stored form costs in bfloat16: the error of its output when weights and every product are rounded.

The interpolative form multiplies the rounding of the kept neurons by C, so a badly chosen pivot set shows here: a pair
has 0.35 %, a good pivot set 1 %; docs/accuracy.md has the measured errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.spectrum import PRECISION, damp
from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear
from nxdi_svd_plugin.stored.projection import READS, LowRank, Side

logger = logging.getLogger(__name__)
TINY = torch.finfo(torch.float32).tiny
PROBES = 256  # inputs; the error is a mean over PROBES x out numbers
DAMPING = 1e-5  # so that a Cholesky root exists, of fewer tokens than H too; every try that fails costs one
LIMIT = 0.04
"""More than this is said aloud; the median of SmolLM2 is 1 %, and at ratio 0.20 one of its projections has more."""


def stored_errors(made: LayerFactors, weights: Callable[[str], Tensor], inputs: Tensor) -> dict[str, dict[str, float]]:
    """What storing adds to every low-rank projection's record.

    `bf16_error`: the relative output error in bfloat16 against the same factors in float32. `relative_error`: that of
    the stored factors against the dense weight, where the limit of growth acted (elsewhere it is known exactly).

    Gate and up read seeded Gaussian inputs that have the covariance of the calibration inputs, down reads what the
    dense gate and up make of them.

    Args:
        weights: projection name to torch weight [out, in]. inputs: E[x x^T] [H, H] of what gate and up read.
    """
    x = probes(inputs).to(torch.float32)
    inner = functional.silu(x @ weights("gate_proj").to(x).T) * (x @ weights("up_proj").to(x).T)
    order = slice(None) if made.order is None else made.order.to(inner.device)
    found: dict[str, dict[str, float]] = {}
    for name, projection in made.mlp.items():
        if not isinstance(projection, LowRank):
            continue
        reads, found[name] = READS[name], {}
        read = x if reads is Side.HIDDEN else inner[:, order]
        layer = stored_layer(made, name, projection, x.shape[1]).to(torch.float32)
        if made.measured[name].get("limited"):
            weight = weights(name).to(x)
            dense = (x @ weight.T)[:, order] if reads is Side.HIDDEN else inner @ weight.T
            found[name]["relative_error"] = float((layer(read).detach() - dense).norm() / dense.norm().clamp_min(TINY))
        found[name]["bf16_error"] = bf16_error(layer, read)
    return found


def warn(layer: int, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which projections lose more than LIMIT in bfloat16 or have had their growth limited, and what to do.

    Raises:
        SvdError: a stored projection is further from its weight than zero is.
    """
    for name, record in records.items():
        if record.get("limited") and record.get("relative_error", 0.0) > 1:
            raise SvdError(
                f"layer {layer} {name}: the limit of max abs C changes its outputs by {record['relative_error']:.0%}: "
                f"the weight has a smaller rank. Keep it dense (--dense {layer}.{name}) or use --form pair"
            )
        error, limited = record.get("bf16_error", 0.0), record.get("limited", 0.0)
        found = []
        if error > LIMIT:
            found.append(f"bfloat16 adds an output error of {error:.1%}, more than {LIMIT:.0%}")
        if limited > 0:
            found.append(f"the limit of max abs C changes its matrix by {limited:.2%}")
        if found:
            logger.warning(
                "layer %d %s: %s: the factors are badly conditioned. Keep it dense (--dense %d.%s), lower its rank or "
                "the block, or use --form pair",
                *(layer, name, " and ".join(found), layer, name),
            )


def probes(inputs: Tensor) -> Tensor:
    """[PROBES, H] Gaussian vectors of the covariance `inputs`."""
    root, _ = damp(inputs.to(PRECISION), DAMPING)
    noise = torch.randn(PROBES, len(root), generator=torch.Generator().manual_seed(0), dtype=PRECISION)
    return noise.to(root.device) @ root.T


def stored_layer(made: LayerFactors, name: str, projection: LowRank, hidden: int) -> nn.Module:
    """The projection as the model runs it, on the memory of its factors."""
    with torch.device("meta"):
        layer = LowRankLinear(projection, READS[name], hidden, made.mlp.width)
    tensors = {part: made.tensors[f"{name}.{part}"] for part, _ in layer.named_parameters()}
    layer.load_state_dict(tensors, assign=True)
    return layer


class Bf16Results(TorchFunctionMode):
    """Every result is rounded to bfloat16 while its dtype stays: float32 sums, one rounding, as a matrix engine does.

    torch's own bfloat16 products would do on a CPU, but oneDNN keeps code for each of up to 1,024 shapes that it has
    seen: 0.2 MB apiece, growing with the number of layers when every layer has its own ranks.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result, rounded where it is float32."""
        result = func(*args, **(kwargs or {}))
        rounds = isinstance(result, Tensor) and result.dtype == torch.float32
        return result.to(torch.bfloat16).to(torch.float32) if rounds else result


def bf16_error(layer: nn.Module, x: Tensor) -> float:
    """|y_bf16 - y| / |y| over the rows of x; 0 where y is 0."""
    with torch.no_grad():
        exact = layer(x)
        inputs = x.to(torch.bfloat16).to(torch.float32)
        layer.to(torch.bfloat16).to(torch.float32)
        with Bf16Results():
            rounded = layer(inputs)
        size = float(exact.norm())
        return float((rounded.to(exact) - exact).norm()) / size if size > 0 else 0.0
