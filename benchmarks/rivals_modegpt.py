"""The MLP part of MoDeGPT as cbacary/MoDeGPT has it (not its authors' code): what benchmarks/rivals.py calls.

Runs its calibration (covariance of down's input, block influence of every layer), `allocate_global_sparsity` and
`compress_weights` (neurons by ridge leverage score, down refitted: the paper's type I, arXiv:2408.09632, Algorithm 1)
with the settings that are its defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

WINDOW = 2048  # by which its calibration divides, whatever the windows are


def load(checkout: Path) -> tuple[Any, Any, Any, Any]:
    """Its modules for calibration, for the shares of layers and for MLPs, and its adapter class; on the CPU."""
    evaluation = ModuleType("src.eval")  # loads texts from the hub
    vars(evaluation)["load_calibration_texts"] = None
    sys.modules["src.eval"] = evaluation
    sys.path.insert(0, str(checkout))
    from src import calibration, compression_utils  # type: ignore[import-not-found]
    from src.adapters import LlamaAdapter as adapter  # type: ignore[import-not-found]
    from src.compression import compress_mlp  # type: ignore[import-not-found]

    calibration.calib_device = adapter.calib_device = compress_mlp.d2 = "cpu"

    class MlpOnly(adapter.LlamaAdapter):
        def register_hooks(self, layer_idx: int, block: Any, cov_mlp_list: list, *, handles: list, **_: Any) -> None:
            hook = self._llama_pre_gate_hook(layer_idx, cov_mlp_list)
            handles.append(block.mlp.down_proj.register_forward_pre_hook(hook))

    return calibration, compression_utils, compress_mlp, MlpOnly


def statistics(task: Any) -> tuple[Any, list, list, Any]:
    """Its adapter class, covariances and block influences of the layers, and its functions."""
    calibration, utils, compress_mlp, adapter_class = load(task.checkout)
    adapter = adapter_class(task.model)
    batch = adapter.config.calibs_batch_size
    adapter.calibs = list(task.samples.split(batch))
    covariances, *_, influences = calibration.load_calibs(adapter, len(task.samples), batch)
    scale = WINDOW / task.samples.shape[1]  # a mean over tokens, as it is with its own windows
    return adapter_class, [scale * c for c in covariances], influences, (utils, compress_mlp)


def compress(task: Any, shared: tuple) -> dict:
    """`task.model` with fewer intermediate neurons in its MLPs and its down projections refitted."""
    import torch

    adapter_class, covariances, influences, (utils, compress_mlp) = shared
    adapter = adapter_class(task.model)
    config, widths = adapter.config, []
    keep = utils.allocate_global_sparsity(influences, task.ratio, config.sparsity_smoothing, config.max_sparsity)
    for i, layer in enumerate(task.model.model.layers):
        components = adapter.get_mlp_components(i)
        weights = compress_mlp.compress_weights(components, covariances[i], keep[i], i, config.nystrom_ridge)
        for name, weight in zip(("up_proj", "down_proj", "gate_proj"), weights[:3], strict=True):
            getattr(layer.mlp, name).weight = torch.nn.Parameter(weight.T.float().contiguous())
        widths.append(weights[3])
    names = ("nystrom_ridge", "sparsity_smoothing", "max_sparsity", "calibs_batch_size")
    return {
        "ranks": {"least": 0, "most": 0, "dense": 3 * len(widths)},
        "widths": {"least": min(widths), "most": max(widths), "mean": sum(widths) / len(widths)},
        "growth": 0.0,
        "settings": {name: getattr(config, name) for name in names},
    }
