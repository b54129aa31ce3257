"""The memory of the host that NxDI takes to trace a model and to shard its weights, from sizes alone.

Read in neuronx-distributed (the commit of SDK 2.28), src/neuronx_distributed/trace/model_builder.py: `trace` builds one
core's share of the model in one process (`_generate_hlo`, one submodel after the other); `shard_checkpoint` keeps the
checkpoint and the shards of every core, each a copy (`create_local_weight`). NxDI's modules/attention/gqa.py repeats
the K and V heads.

    trace = COPIES x weights of one core        shard = weights of the checkpoint + tp x weights of one core

COPIES is an assumption, since what torch_neuronx does with the parameters while it traces is not public: the built
parameters and one copy in the graph. It agrees with the one public report (aws-neuron-sdk issue 1222: Llama-3.1-8B at
tp 1 killed "generating HLO" on the 32 GB of a trn1.2xlarge; 2 x 16.1 GB here). The compiler's own memory comes on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.checkpoint.tensors import all_tensors, heads
from nxdi_svd_plugin.stored.layers import Layers, Mlp
from nxdi_svd_plugin.stored.projection import Dense

COPIES = 2
ASSUMPTION = (
    f"assumes {COPIES} copies of one core's weights while NxDI traces, and the checkpoint beside the shards of all "
    "cores while it shards; without the compiler's own memory"
)


@dataclass(frozen=True)
class HostMemory:
    """Bytes on the host while NxDI traces, and while it shards the checkpoint."""

    trace: int
    shard: int


def host_memory(config: SourceConfig, layers: Layers, tp: int, itemsize: int) -> HostMemory:
    """What a model with these MLPs takes at degree `tp`, with numbers of `itemsize` bytes."""
    whole = one = 0
    for name, shape in all_tensors(config).items():
        if ".mlp." not in name:
            numbers = math.prod(shape)
            whole += numbers
            one += numbers if "norm" in name else -(-numbers * _repeats(config, name, tp) // tp)
    for mlp in layers.values():
        whole += mlp.parameters(config.hidden)
        one += core_parameters(config.hidden, mlp, tp)
    return HostMemory(COPIES * itemsize * one, itemsize * (whole + tp * one))


def core_parameters(hidden: int, mlp: Mlp, tp: int) -> int:
    """Numbers of an MLP on one core: far is split, near is whole on the cores that share a group."""
    total = 0
    for _, projection in mlp.items():
        if isinstance(projection, Dense):
            total += -(-hidden * mlp.width // tp)
        else:
            near, far = (math.prod(shape) for shape in projection.shapes(hidden, mlp.width))
            total += -(-near // min(tp, projection.groups)) + -(-far // tp)
    return total


def _repeats(config: SourceConfig, name: str, tp: int) -> int:
    """How often NxDI repeats a tensor over all cores (gqa.py, `get_shardable_head_counts`): K and V heads that do not
    divide over the cores, until there are as many as cores or, where that is no multiple, as Q heads."""
    if not any(f".{kind}_proj." in name for kind in "kv"):
        return 1
    queries, stored, _ = heads(config)
    if stored % tp == 0:
        return 1
    return (queries if tp % stored else tp) // stored
