"""The MLP of a decoder layer with factored projections: down(SiLU(gate(x)) * up(x)), one all-reduce at the end."""

from __future__ import annotations

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
from nxdi_svd_plugin.nxdi.factors import Factors
from nxdi_svd_plugin.svd_config import Projection, projection_dims

SEQUENCE_DIM = 1


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
        self.gate_proj = self._projection("gate_proj", projections, config)
        self.up_proj = self._projection("up_proj", projections, config)
        self.down_proj = self._projection("down_proj", projections, config)

    def _projection(self, name: str, projections: dict[str, Projection], config: Any) -> torch.nn.Module:
        neuron_config = config.neuron_config
        fan_in, fan_out = projection_dims(name, config.hidden_size, config.intermediate_size)
        if projections[name].form != "dense":  # interpolative ones arrive expanded, see state_dict.py
            return Factors(
                fan_in,
                fan_out,
                projections[name].rank,
                split_input=name == "down_proj",
                tp_degree=neuron_config.tp_degree,
                dtype=neuron_config.torch_dtype,
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
            NxdiError: the layer leaves the norm or the residual to the MLP.
        """
        if rmsnorm is not None or residual is not None:
            raise NxdiError(f"layer {self.index} leaves its norm or residual to the MLP; unset mlp_kernel_enabled")
        if self.sequence_parallel:
            x = gather_from_sequence_parallel_region(x, SEQUENCE_DIM, process_group=self.group)
        hidden = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self._reduce(self.down_proj(hidden)), None

    def _reduce(self, y: torch.Tensor) -> torch.Tensor:
        """Sum the ranks' partial outputs in `rpl_reduce_dtype`, as NxDI's row-parallel layer does."""
        partial = y.to(self.reduce_dtype)
        if self.sequence_parallel:
            total = reduce_scatter_to_sequence_parallel_region(partial, SEQUENCE_DIM, process_group=self.group)
        else:
            total = reduce_from_tensor_model_parallel_region(partial, process_group=self.group)
        summed: torch.Tensor = total.to(y.dtype)
        return summed
