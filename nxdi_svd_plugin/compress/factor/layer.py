"""One layer's projections in the recipe's form: from statistics to the tensors that are stored.

The three projections of an interpolative layer share one order of the intermediate dimension, so they are made
together, and a projection of such a layer that stays dense is stored in that order too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.interpolative import Interpolation, interpolate
from nxdi_svd_plugin.factorize.spectrum import Spectrum, output_error, spectrum, truncate
from nxdi_svd_plugin.stored.layers import PROJECTIONS, Projection, Ranges
from nxdi_svd_plugin.stored.order import cells, common_order, indices

UNDAMPED = 1e-12
"""Damping of the input objective: the paper's whitening has none; the ridge only grows where Cholesky needs it."""


@dataclass(frozen=True)
class LayerFactors:
    """The stored form of a layer.

    projections: as decided, with the pivots that were found. tensors: by "<projection>.<name>", float64.
    order: stored intermediate neuron -> source neuron, or None when the source's order was kept.
    records: one entry of the report for each projection.
    """

    projections: dict[str, Projection]
    tensors: dict[str, Tensor]
    order: Tensor | None
    records: dict[str, dict[str, Any]]


def layer_spectrum(
    name: str, weight: Tensor, sums: Mapping[str, Tensor], tokens: int, objective: str, damping: float, rank: int = 0
) -> Spectrum:
    """The objective's spectrum of one projection; `weight` is torch's [out, in].

    The near side is the hidden dimension: the input of gate and up, the output of down. With a rank, the spectrum has
    the output error at it.
    """
    wide = _hidden_by_intermediate(name, weight)
    gram = wide @ wide.T
    down = name == "down_proj"
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    plain = (eye, sums["outputs"] / tokens) if down else (sums["inputs"] / tokens, gram)
    if objective == "input":
        return _with_error(spectrum(*plain, gram, 1e-300, UNDAMPED), rank, *plain)
    squares = sums[name.replace("proj", "squares")] / tokens
    if down:
        gradients = sums["down_gradients"] / tokens
        near, projected = (gradients if gradients.ndim == 2 else torch.diag(gradients)), sums["outputs"] / tokens
    else:
        near = sums["inputs"] / tokens
        projected = (
            (wide * squares) @ wide.T
            if objective == "two_sided_diagonal"
            else sums[name.replace("proj", "gradients")] / tokens
        )
    return _with_error(spectrum(near, projected, gram, float(squares.mean()), damping), rank, *plain)


def _with_error(spec: Spectrum, rank: int, near: Tensor, far: Tensor) -> Spectrum:
    return dataclasses.replace(spec, output_error=output_error(spec, rank, near, far)) if rank else spec


def factor_layer(
    weights: Callable[[str], Tensor],
    spectra: Mapping[str, Spectrum],
    projections: Mapping[str, Projection],
    block: int,
) -> LayerFactors:
    """Factors of every projection that is not dense.

    Args:
        weights: projection name to torch weight [out, in].
        spectra: of the projections that are not dense.
        projections: planned form and rank.
    Raises:
        SvdError: a weight has a smaller rank than planned.
    """
    pairs = {
        name: truncate(_hidden_by_intermediate(name, weights(name)), s, projections[name].rank)
        for name, s in spectra.items()
    }
    records = {name: _record(projections[name].rank, s) for name, s in spectra.items()}
    if not any(p.form == "interpolative" for p in projections.values()):
        tensors = {f"{name}.{key}": t for name, pair in pairs.items() for key, t in _balanced(name, *pair).items()}
        return LayerFactors(dict(projections), tensors, None, records)
    width = weights("gate_proj").shape[0]
    found, sets = _choose_pivots(pairs, width, block)
    order, runs = common_order(sets, width)
    tensors, done = {}, {}
    for name, ranges in zip(PROJECTIONS, runs, strict=True):
        if name not in pairs:
            permuted = weights(name)[:, order] if name == "down_proj" else weights(name)[order]
            tensors[f"{name}.weight"] = permuted.contiguous()
            done[name] = projections[name]
            continue
        done[name] = Projection("interpolative", projections[name].rank, ranges)
        records[name] |= {"growth": found[name].growth, "limited": found[name].limited}
        for key, tensor in _interpolative(name, pairs[name], found[name], order, ranges).items():
            tensors[f"{name}.{key}"] = tensor
    return LayerFactors(done, tensors, order, records)


def _choose_pivots(
    pairs: Mapping[str, tuple[Tensor, Tensor]], width: int, block: int
) -> tuple[dict[str, Interpolation], list[Tensor]]:
    """Pivots of gate, then up, then down, each in whole blocks of the cells that the earlier ones have cut."""
    none = torch.empty(0, dtype=torch.long)
    sets, found = [none, none, none], {}
    for i, name in enumerate(PROJECTIONS):
        if name in pairs:
            classes = [cell for cell in cells(sets, width) if len(cell)]
            try:
                found[name] = interpolate(pairs[name][1], classes, block)
            except SvdError as error:
                raise SvdError(f"{name}: {error}. Keep it dense, lower its rank or use the pair form") from error
            sets[i] = found[name].pivots.cpu()
    return found, sets


def _interpolative(
    name: str, pair: tuple[Tensor, Tensor], found: Interpolation, order: Tensor, ranges: Ranges
) -> dict[str, Tensor]:
    """u, c or c, v with the intermediate dimension in the stored order."""
    near, coordinates = pair
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[indices(ranges)] = True
    pivots, others = order[kept].to(coordinates.device), order[~kept].to(coordinates.device)
    c, columns = found.in_order(others, pivots), near @ coordinates[:, pivots]
    return {"c": c.T, "v": columns.T} if name == "down_proj" else {"u": columns, "c": c}


def _balanced(name: str, near: Tensor, coordinates: Tensor) -> dict[str, Tensor]:
    """A pair u, v of equal row and column norms (Eq. 6-8 split the singular values evenly for the same reason)."""
    scale = (near.norm(dim=0) / coordinates.norm(dim=1).clamp_min(1e-300)).clamp_min(1e-300).sqrt()
    left, right = near / scale, coordinates * scale[:, None]
    return {"u": right.T, "v": left.T} if name == "down_proj" else {"u": left, "v": right}


def _hidden_by_intermediate(name: str, weight: Tensor) -> Tensor:
    """The weight as float64 [H, I]: gate and up are stored [I, H], down [H, I]."""
    return (weight if name == "down_proj" else weight.T).to(torch.float64)


def _record(rank: int, spec: Spectrum) -> dict[str, Any]:
    return {
        "relative_error": spec.output_error,
        "discarded": float(spec.energy[rank:].sum()),
        "energy": float(spec.energy.sum()),
        "relative_ridge": spec.relative_ridge,
        "predicted_loss": spec.loss(rank),
    }
