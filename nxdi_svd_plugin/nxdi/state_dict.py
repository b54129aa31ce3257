"""The factors in NxDI's checkpoint path: exactly the tensors that config.json promises, or an error.

NxDI deletes the keys it has no parameter for, skips the parameters it has no key for, and runs what is left. This check
runs inside `convert_hf_to_neuron_state_dict`, which every path goes through: CPU, load, `save_sharded_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.svd_config import Layers, Projection, projection_dims, tensor_shapes

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


def expand_interpolative(state_dict: dict[str, torch.Tensor], layers: Layers) -> None:
    """Replace the `c` of interpolative projections by the `v` (gate, up) or `u` (down) that it is a part of, in place.

    gate, up: v[:, pivots] = identity, v[:, others] = c; down: u[pivots] = identity, u[others] = c. The same function,
    exactly, in the one layout that the kernels read.
    """
    for index, projections in layers.items():
        for name, projection in projections.items():
            if projection.form == "interpolative":
                stem = f"layers.{index}.mlp.{name}."
                combinations = state_dict.pop(stem + "c")
                if name == "down_proj":
                    state_dict[stem + "u"] = _with_identity(combinations, projection)
                else:
                    state_dict[stem + "v"] = _with_identity(combinations.t(), projection).t().contiguous()


def _with_identity(combinations: torch.Tensor, projection: Projection) -> torch.Tensor:
    """[I, rank]: rows of the identity at the pivots, of `combinations` [I - rank, rank] elsewhere."""
    rank = projection.rank
    whole = combinations.new_zeros(len(combinations) + rank, rank)
    pivots = torch.zeros(len(whole), dtype=torch.bool)
    for start, stop in projection.pivots:
        pivots[start:stop] = True
    whole[pivots] = torch.eye(rank, dtype=combinations.dtype)
    whole[~pivots] = combinations
    return whole


def _refuse(verb: str, keys: Iterable[str], reason: str) -> None:
    names = sorted(keys)
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise NxdiError(
            f"the checkpoint {verb} the MLP tensors {shown}, but {reason}. "
            "The directory is damaged or mixed up: run `nxdi-svd verify` and compress it again"
        )
