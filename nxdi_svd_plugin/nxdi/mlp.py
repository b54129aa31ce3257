"""The MLP of a decoder layer with factored projections: down(SiLU(gate(x)) * up(x)), one all-reduce at the end."""

from __future__ import annotations

import logging
from typing import Any

import torch
from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear
from neuronx_distributed.parallel_layers.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from neuronx_distributed_inference.utils.distributed import get_tp_group

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.kernels.packing import from_kernel_order, to_kernel_order
from nxdi_svd_plugin.nxdi import device
from nxdi_svd_plugin.nxdi.config import FUSED
from nxdi_svd_plugin.nxdi.factors import Factors, shard_width
from nxdi_svd_plugin.nxdi.low_rank import INTERPOLATIVE, InterpolativeFactors, announce, has_interpolative, shares
from nxdi_svd_plugin.stored.kernel_fit import Fusion, fusion
from nxdi_svd_plugin.stored.layers import Projection, Ranges, projection_dims

SEQUENCE_DIM = 1
logger = logging.getLogger(__name__)


class SvdMLP(torch.nn.Module):
    """Stands in for NxDI's NeuronLlamaMLP, which Llama and Qwen3 share.

    Args:
        config: the submodel's InferenceConfig.
        projections: form and rank of gate_proj, up_proj and down_proj; a dense one is NxDI's parallel linear layer.
        index: the decoder layer, for messages.
    """

    def __init__(self, config: Any, projections: dict[str, Projection], index: int) -> None:
        super().__init__()
        neuron_config = config.neuron_config
        self.index = index
        self.group = get_tp_group(config)
        self.sequence_parallel = neuron_config.sequence_parallel_enabled
        self.reduce_dtype = neuron_config.rpl_reduce_dtype or neuron_config.torch_dtype
        self.local_pivots, width = self._local_pivots(config, projections)
        fused = neuron_config.mlp_impl == FUSED
        self.fusion = fusion(projections, self.local_pivots, width) if fused else Fusion()
        if self.fusion.misfit:
            announce()
        elif fused and not (self.fusion.up_gate and self.fusion.down):
            alone = "gate and up" if self.fusion.down else "down" if self.fusion.up_gate else "gate, up and down"
            logger.warning("layer %d runs %s without kernel: one is dense, or gate and up differ in form", index, alone)
        up_gate = "up_gate" if self.fusion.up_gate else None
        self.gate_proj = self._projection("gate_proj", projections, config, up_gate)
        self.up_proj = self._projection("up_proj", projections, config, up_gate)
        self.down_proj = self._projection("down_proj", projections, config, "down" if self.fusion.down else None)

    @staticmethod
    def _local_pivots(config: Any, projections: dict[str, Projection]) -> tuple[dict[str, Ranges], int]:
        """The pivots inside a rank, and how many neurons of I it has."""
        degree = config.neuron_config.tp_degree
        width = shard_width(config.intermediate_size, degree)
        if not has_interpolative(projections):
            return {}, width
        return shares(projections, config.intermediate_size, degree)[1], width

    def _projection(
        self, name: str, projections: dict[str, Projection], config: Any, kernel: str | None
    ) -> torch.nn.Module:
        neuron_config = config.neuron_config
        fan_in, fan_out = projection_dims(name, config.hidden_size, config.intermediate_size)
        if projections[name].form == INTERPOLATIVE:
            return InterpolativeFactors(
                fan_in,
                fan_out,
                projections[name],
                self.local_pivots[name],
                split_input=name == "down_proj",
                tp_degree=neuron_config.tp_degree,
                dtype=neuron_config.torch_dtype,
                kernel=kernel,
            )
        if projections[name].form == "factored":
            return Factors(
                fan_in,
                fan_out,
                projections[name].rank,
                split_input=name == "down_proj",
                tp_degree=neuron_config.tp_degree,
                dtype=neuron_config.torch_dtype,
                kernel=kernel,
            )
        common: dict[str, Any] = {
            "bias": False,
            "dtype": neuron_config.torch_dtype,
            "pad": True,
            "tensor_model_parallel_group": self.group,
        }
        if name == "down_proj":
            down: torch.nn.Module = RowParallelLinear(
                fan_in, fan_out, input_is_parallel=True, reduce_output=False, **common
            )
            return down
        up: torch.nn.Module = ColumnParallelLinear(fan_in, fan_out, gather_output=False, **common)
        return up

    def forward(
        self, x: torch.Tensor, rmsnorm: Any = None, residual: Any = None, adapter_ids: Any = None
    ) -> tuple[torch.Tensor, None]:
        """NxDI's contract of a decoder layer's MLP.

        Args:
            x: [batch, sequence, hidden], normalised; [batch, sequence / tp, hidden] under sequence parallelism.
            rmsnorm, residual: None; NxDI passes them only to its own MLP kernels.
            adapter_ids: of LoRA serving, which does not reach a factored MLP.
        Returns:
            (y, None), y like x, summed over the ranks (and scattered over the sequence under sequence parallelism).
        Raises:
            NxdiError: the layer leaves the norm or the residual to the MLP; `svd_fused` on trn1 with an SDK that
                cannot run the kernels.
        """
        if rmsnorm is not None or residual is not None:
            raise NxdiError(f"layer {self.index} leaves its norm or residual to the MLP; unset mlp_kernel_enabled")
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, SEQUENCE_DIM, process_group=self.group)
        if (self.fusion.up_gate or self.fusion.down) and device.runs_kernels(x):
            y = self._kernels(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        else:
            y = self.down_proj(self._hidden(x))
        return self._reduce(y), None

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """SiLU(gate(x)) * up(x), this rank's channels last."""
        hidden: torch.Tensor = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return hidden

    def _kernels(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP of tokens x [S, H]; the two kernels meet in the transposed hidden tensor [I, S].

        Parameters go in untouched, so that NxDI's weight layout optimisation leaves them alone.
        """
        calls, pivots = device.kernel_calls(), self.fusion.pivots
        gate: Any = self.gate_proj
        up: Any = self.up_proj
        down: Any = self.down_proj
        written = self.fusion.up_gate and bool(pivots["gate_proj"])
        read = self.fusion.down and bool(pivots["down_proj"])
        if self.fusion.up_gate:
            runs = pivots["gate_proj"], pivots["up_proj"]
            hidden_t = calls.up_gate(x, *gate.factors(), *up.factors(), pivots=runs)
        else:
            hidden_t = self._hidden(x).t().contiguous()
        if written != read:  # only interpolative factors of a kernel have hidden rows in kernel order
            hidden_t = from_kernel_order(hidden_t) if written else to_kernel_order(hidden_t)
        if not self.fusion.down:
            y: torch.Tensor = down(hidden_t.t())
            return y
        return calls.down(hidden_t, *down.factors(), pivots=pivots["down_proj"])

    def _reduce(self, y: torch.Tensor) -> torch.Tensor:
        """Sum the ranks' partial outputs in `rpl_reduce_dtype`, as NxDI's row-parallel layer does."""
        partial = y.to(self.reduce_dtype)
        if self.sequence_parallel:
            total = reduce_scatter_to_sequence_parallel_region(partial, SEQUENCE_DIM, process_group=self.group)
        else:
            total = reduce_from_tensor_model_parallel_region(partial, process_group=self.group)
        summed: torch.Tensor = total.to(y.dtype)
        return summed
