"""The factors in NxDI's checkpoint path: exactly the tensors that config.json promises, or an error.

NxDI deletes the keys it has no parameter for, skips the parameters it has no key for, and runs what is left. This check
runs inside `convert_hf_to_neuron_state_dict`, which every path goes through: CPU, load, `save_sharded_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.stored.layers import Layers, projection_dims, tensor_shapes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def expected_shapes(layers: Layers, hidden: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """Name (without the leading `model.`) and shape of every MLP tensor of the checkpoint."""
    return {
        f"layers.{index}.mlp.{name}.{tensor}": shape
        for index, projections in layers.items()
        for name, projection in projections.items()
        for tensor, shape in tensor_shapes(projection, *projection_dims(name, hidden, intermediate)).items()
    }


def check_mlp_tensors(state_dict: Mapping[str, torch.Tensor], layers: Layers, config: Any) -> None:
    """Compare the checkpoint's MLP tensors with `layers`.

    Args:
        state_dict: the whole checkpoint, names without the leading `model.`.
        layers: form and rank of every projection, from svd_config.
        config: the InferenceConfig; gives hidden_size and intermediate_size.
    Raises:
        NxdiError: tensors are missing, left over, misshapen or not floating point.
    """
    expected = expected_shapes(layers, config.hidden_size, config.intermediate_size)
    found = {key for key in state_dict if ".mlp." in key}
    _refuse("lacks", expected.keys() - found, "config.json's svd_config promises them")
    _refuse("has", found - expected.keys(), "config.json's svd_config does not know them")
    for key, shape in expected.items():
        tensor = state_dict[key]
        if tuple(tensor.shape) != shape:
            raise NxdiError(
                f"{key} has shape {list(tensor.shape)}; config.json says {list(shape)}. "
                "The directory is damaged or mixed up: compress it again"
            )
        if tensor.dtype not in DTYPES:
            raise NxdiError(f"{key} has dtype {tensor.dtype}; factors are float32, bfloat16 or float16")


def _refuse(verb: str, keys: Iterable[str], reason: str) -> None:
    names = sorted(keys)
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise NxdiError(
            f"the checkpoint {verb} the MLP tensors {shown}, but {reason}. "
            "The directory is damaged or mixed up: run `nxdi-svd verify` and compress it again"
        )
