"""The MLP of a decoder layer with low-rank projections: down(SiLU(gate(x)) * up(x)), one all-reduce at the end."""

from __future__ import annotations

import functools
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
from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.packing import from_kernel_order, to_kernel_order
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import fits, mlp_chains
from nxdi_svd_plugin.kernels.tiling.groups import calls_of
from nxdi_svd_plugin.nxdi import device
from nxdi_svd_plugin.nxdi.low_rank import LowRankFactors, in_kernel_order, joined
from nxdi_svd_plugin.nxdi.mlp_impl import FUSED
from nxdi_svd_plugin.stored.cores import neurons_of, share_of, sharing
from nxdi_svd_plugin.stored.kernel_fit import KernelFit, kernel_fit
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS, Dense, Side

SEQUENCE_DIM = 1
logger = logging.getLogger(__name__)


@functools.cache
def announce_misfit() -> None:
    """Log once that `mlp_impl="svd_fused"` has no kernel for pivots like these."""
    logger.warning(
        "mlp_impl='svd_fused' runs interpolative projections as PyTorch ops, not as NKI kernels: on each rank their "
        "pivots are not whole tiles of %d neurons, which the kernels need. Compress for this tp_degree (--tp-degree) "
        "with a block of %d, or with --form pair, for the kernels",
        *(PARTITIONS, PARTITIONS),
    )


def log_fit(index: int, fit: KernelFit) -> None:
    """Say which projections of a layer have no kernel and why; what one misfit of many layers explains, once."""
    if fit.misfit:
        announce_misfit()
    if fit.refused:
        level = logging.INFO if fit.misfit else logging.WARNING
        logger.log(level, "layer %d runs without kernel: %s", index, fit.describe())


def bridge(hidden_t: torch.Tensor, fit: KernelFit) -> torch.Tensor:
    """Hidden rows [w, S] of a group in kernel order, for the one half of the MLP that a kernel runs and the other that
    has them in the plain order."""
    if fit.up_gate == fit.down:
        return hidden_t
    bridged: torch.Tensor = from_kernel_order(hidden_t) if fit.up_gate else to_kernel_order(hidden_t)
    return bridged


class SvdMLP(torch.nn.Module):
    """Stands in for NxDI's NeuronLlamaMLP, which Llama and Qwen3 share.

    Args:
        config: the submodel's InferenceConfig.
        stored: what the layer stores; a dense projection is NxDI's parallel linear layer, of the layer's width.
        index: the decoder layer, for messages.
    """

    def __init__(self, config: Any, stored: Mlp, index: int) -> None:
        super().__init__()
        neuron_config = config.neuron_config
        self.index, self.stored, self.hidden_size = index, stored, config.hidden_size
        self.groups = sharing(stored.groups, neuron_config.tp_degree).groups
        self.group = get_tp_group(config)
        self.sequence_parallel = neuron_config.sequence_parallel_enabled
        self.reduce_dtype = neuron_config.rpl_reduce_dtype or neuron_config.torch_dtype
        fused = neuron_config.mlp_impl == FUSED
        self.fit = kernel_fit(stored, neuron_config.tp_degree) if fused else KernelFit({}, {})
        log_fit(index, self.fit)
        self.in_kernel_order = in_kernel_order(stored, neuron_config.tp_degree)
        self.share = share_of(stored, neuron_config.tp_degree)
        self.gate_proj = self._projection("gate_proj", config)
        self.up_proj = self._projection("up_proj", config)
        self.down_proj = self._projection("down_proj", config)

    def _projection(self, name: str, config: Any) -> torch.nn.Module:
        if isinstance(self.stored[name], Dense):
            return self._dense(READS[name], config)
        neuron_config = config.neuron_config
        return LowRankFactors(
            self.stored,
            name,
            config.hidden_size,
            tp_degree=neuron_config.tp_degree,
            dtype=neuron_config.torch_dtype,
            kernel=name in self.fit.pivots,
        )

    def _dense(self, reads: Side, config: Any) -> torch.nn.Module:
        """NxDI's own layer, as wide as all ranks with their padding (state_dict.share_out)."""
        neuron_config = config.neuron_config
        width = neurons_of(self.stored, neuron_config.tp_degree) * neuron_config.tp_degree
        sizes, dtype = reads.dims(config.hidden_size, width), neuron_config.torch_dtype
        common = {"bias": False, "dtype": dtype, "tensor_model_parallel_group": self.group}
        if reads is Side.HIDDEN:
            up: torch.nn.Module = ColumnParallelLinear(*sizes, gather_output=False, **common)
            return up
        down: torch.nn.Module = RowParallelLinear(*sizes, input_is_parallel=True, reduce_output=False, **common)
        return down

    def forward(
        self, x: torch.Tensor, rmsnorm: Any = None, residual: Any = None, adapter_ids: Any = None
    ) -> tuple[torch.Tensor, None]:
        """NxDI's contract of a decoder layer's MLP.

        Args:
            x: [batch, sequence, hidden], normalised; [batch, sequence / tp, hidden] under sequence parallelism.
            rmsnorm, residual: None; NxDI passes them only to its own MLP kernels.
            adapter_ids: of LoRA serving, which does not reach this MLP.
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
        if (self.fit.up_gate or self.fit.down) and device.runs_kernels(x):
            y = self._kernels(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        else:
            y = self.down_proj(self._hidden(x))
        return self._reduce(y), None

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """SiLU(gate(x)) * up(x), this rank's channels last."""
        hidden: torch.Tensor = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return hidden

    def _kernels(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP of tokens x [S, H]: `mlp` for few of them, else two kernels, which meet in the transposed hidden
        tensor [I, S] of a group, and take all groups at once where that is no worse."""
        if self._in_one_call(x):
            return self._mlp(x)
        if self.fit.up_gate:
            hidden = self._up_gate(x)
        else:
            hidden = [part.t().contiguous() for part in self._hidden(x).chunk(self.groups, -1)]
        if self.in_kernel_order:
            hidden = [bridge(hidden_t, self.fit) for hidden_t in hidden]
        if self.fit.down:
            return self._down(hidden)
        y: torch.Tensor = self.down_proj(joined([hidden_t.t() for hidden_t in hidden]))
        return y

    def _in_one_call(self, x: torch.Tensor) -> bool:
        """Whether `mlp` takes these tokens."""
        if not (self.fit.up_gate and self.fit.down):
            return False
        tokens, hidden = x.shape
        ranks = tuple(projection.rank for projection in self._low_rank())
        pivots = tuple(self.fit.pivots[name] for name in PROJECTIONS)
        return fits(*mlp_chains(tokens, hidden, self.share, ranks, x.element_size(), pivots), self.groups)

    def _low_rank(self) -> tuple[Any, Any, Any]:
        """Gate, up and down, where all are LowRankFactors."""
        return self.gate_proj, self.up_proj, self.down_proj

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        """All groups at once; of several, each factor is a list."""
        factors = self._of_all_groups(*self._low_rank())
        pivots = tuple(self.fit.pivots[name] for name in PROJECTIONS)
        y: torch.Tensor = device.kernel_calls().mlp(
            x, *(factors if self.groups > 1 else [of for [of] in factors]), pivots=pivots
        )
        return y

    def _of_all_groups(self, *projections: Any) -> list[list[torch.Tensor]]:
        """Every factor as a list with a tensor a group. Parameters go into the kernels untouched: the layout is theirs,
        and a slice would be a copy."""
        groups = [[factor for each in projections for factor in each.factors(group)] for group in range(self.groups)]
        return list(map(list, zip(*groups, strict=True)))

    def _up_gate(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The hidden tensor of every group."""
        gate, up, _ = self._low_rank()
        runs = self.fit.pivots["gate_proj"], self.fit.pivots["up_proj"]
        tokens, hidden = x.shape
        chain = Chain("up_gate", tokens, hidden, (gate.rank, up.rank), self.share, x.element_size(), pivots=runs)
        factors, call = self._of_all_groups(gate, up), device.kernel_calls().up_gate
        if calls_of(chain, self.groups) < self.groups:
            return list(call(x, *factors, pivots=runs))
        return [call(x, *of, pivots=runs) for of in zip(*factors, strict=True)]

    def _down(self, hidden: list[torch.Tensor]) -> torch.Tensor:
        """What all groups add to the output."""
        down, runs = self._low_rank()[2], self.fit.pivots["down_proj"]
        width, tokens = hidden[0].shape
        chain = Chain("down", tokens, width, (down.rank,), self.hidden_size, hidden[0].element_size(), pivots=(runs,))
        factors, call = self._of_all_groups(down), device.kernel_calls().down
        if calls_of(chain, self.groups) < self.groups:
            y: torch.Tensor = call(hidden, *factors, pivots=runs)
            return y
        parts = [call(*of, pivots=runs) for of in zip(hidden, *factors, strict=True)]
        summed: torch.Tensor = functools.reduce(torch.add, parts)
        return summed

    def _reduce(self, y: torch.Tensor) -> torch.Tensor:
        """Sum the ranks' partial outputs in `rpl_reduce_dtype`, as NxDI's row-parallel layer does."""
        partial = y.to(self.reduce_dtype)
        if self.sequence_parallel:
            total = reduce_scatter_to_sequence_parallel_region(partial, SEQUENCE_DIM, process_group=self.group)
        else:
            total = reduce_from_tensor_model_parallel_region(partial, process_group=self.group)
        summed: torch.Tensor = total.to(y.dtype)
        return summed
