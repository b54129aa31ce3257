"""A compressed checkpoint on its way into NxDI: exactly the tensors that config.json promises, or an error.

NxDI deletes the keys it has no parameter for, skips the parameters it has no key for, and runs what is left. This check
runs inside `convert_hf_to_neuron_state_dict`, which every path goes through: CPU, load, `save_sharded_checkpoint`.
There, too, the neurons of a group are shared out where it is on several cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.stored.cells import pivot_runs
from nxdi_svd_plugin.stored.cores import share_of, sharing
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.layers import Layers, Mlp
from nxdi_svd_plugin.stored.order import indices, split_evenly
from nxdi_svd_plugin.stored.projection import READS, Dense, LowRank, Shape, Side


def expected_shapes(layers: Layers, hidden: int) -> dict[str, Shape]:
    """Name (without the leading `model.`) and shape of every MLP tensor of the checkpoint."""
    return {f"layers.{i}.mlp.{name}": shape for i, mlp in layers.items() for name, shape in mlp.tensors(hidden).items()}


def check_mlp_tensors(state_dict: Mapping[str, torch.Tensor], layers: Layers, hidden: int) -> None:
    """Compare the checkpoint's MLP tensors with `layers`.

    Args:
        state_dict: the whole checkpoint, names without the leading `model.`.
        layers: what every layer stores, from svd_config.
        hidden: the model's hidden size.
    Raises:
        NxdiError: tensors are missing, left over, misshapen or not floating point.
    """
    expected = expected_shapes(layers, hidden)
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
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise NxdiError(f"{key} has dtype {tensor.dtype}; factors are float32, bfloat16 or float16")


def _refuse(verb: str, keys: Iterable[str], reason: str) -> None:
    names = sorted(keys)
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise NxdiError(
            f"the checkpoint {verb} the MLP tensors {shown}, but {reason}. "
            "The directory is damaged or mixed up: run `nxdi-svd verify` and compress it again"
        )


def share_out(state_dict: dict[str, torch.Tensor], layers: Layers, tp_degree: int) -> None:
    """Put the neurons of every group that several cores share into their order, in place.

    With pivots: each core has the same number of those of gate, up and down in the same places
    (stored.cells.core_runs). Without: the file's order, and zeros behind those of a dense projection that do not divide
    over the cores; low_rank.py pads the factors.

    Args:
        state_dict: checked, names without the leading `model.`.
    Raises:
        SvdError: the groups or the pivots do not go evenly on the cores.
    """
    for index, mlp in layers.items():
        cores = sharing(mlp.groups, tp_degree).cores
        order = torch.cat(split_evenly(mlp, cores)) if cores > 1 and any(pivot_runs(mlp)) else None
        for name, projection in mlp.items():
            reads, stem = READS[name], f"layers.{index}.mlp.{name}."
            tensors = {tensor: state_dict[stem + tensor] for tensor in projection.tensors(reads, 1, mlp.width)}
            if isinstance(projection, Dense):
                tensors = {key: shared_dense(tensor, reads, mlp, order, tp_degree) for key, tensor in tensors.items()}
            elif order is not None:
                tensors = reordered(projection, reads, tensors, order)
            state_dict.update({stem + key: tensor for key, tensor in tensors.items()})


def shared_dense(
    weight: torch.Tensor, reads: Side, mlp: Mlp, order: torch.Tensor | None, tp_degree: int
) -> torch.Tensor:
    """A dense weight with the neurons of every group in another order (new position -> stored one; None: as they are)
    and zeros behind them up to equal shares."""
    part, cores = mlp.width // mlp.groups, sharing(mlp.groups, tp_degree).cores
    missing = share_of(mlp, tp_degree) * cores - part
    if order is None and not missing:
        return weight
    slices = reads.hidden_first(weight).reshape(-1, mlp.groups, part)
    slices = slices if order is None else slices[:, :, order]
    return reads.hidden_first(torch.nn.functional.pad(slices, (0, missing)).flatten(1)).contiguous()


def reordered(
    projection: LowRank, reads: Side, tensors: Mapping[str, torch.Tensor], order: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A low-rank projection's tensors with the neurons of every group in another order (new position -> stored one,
    int64 [w / g])."""
    near, far = projection.from_disk(reads, tensors)
    is_pivot = torch.zeros(len(order), dtype=torch.bool)
    is_pivot[indices(projection.pivots)] = True
    number = torch.where(is_pivot, is_pivot.cumsum(0), (~is_pivot).cumsum(0)) - 1  # among its kind
    pivots, others = number[order[is_pivot[order]]], number[order[~is_pivot[order]]]
    if projection.pivots:
        near, far = _in_groups(near, projection.groups, pivots), far[pivots]
    return projection.to_disk(reads, near, _in_groups(far, projection.groups, others))


def _in_groups(matrix: torch.Tensor, groups: int, order: torch.Tensor) -> torch.Tensor:
    """The columns of every group in another order."""
    return matrix.reshape(len(matrix), groups, len(order))[:, :, order].flatten(1)
