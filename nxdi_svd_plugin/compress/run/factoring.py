"""The steps from statistics to stored tensors: spectra, ranks, copy, factor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nxdi_svd_plugin.checkpoint.atomic import disk_errors
from nxdi_svd_plugin.checkpoint.names import NOBODY, ORDER, layer_prefix
from nxdi_svd_plugin.compress.factor.layer import LayerFactors, factor_layer, moved
from nxdi_svd_plugin.compress.factor.narrow import DOWN, elimination
from nxdi_svd_plugin.compress.factor.rounding import stored_errors, warn
from nxdi_svd_plugin.compress.factor.spectra import Decomposition, decompose, energies, forget, restore
from nxdi_svd_plugin.compress.forms import named
from nxdi_svd_plugin.compress.plan.budget import Energies, global_ranks
from nxdi_svd_plugin.compress.plan.limits import Limits
from nxdi_svd_plugin.compress.plan.ranks import fixed_projection
from nxdi_svd_plugin.compress.plan.scaling import scaled_curves, scaled_energies
from nxdi_svd_plugin.compress.plan.widths import Curve, global_widths
from nxdi_svd_plugin.compress.run.calibration import INNER, neurons
from nxdi_svd_plugin.compress.run.job import stored_dtype
from nxdi_svd_plugin.compress.run.refitting import refitted
from nxdi_svd_plugin.compress.run.scaling import trials_of
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.compress.run.sources import (
    curves_of,
    dropping_file,
    energies_file,
    read,
    source_of,
    spectra_file,
    stages_of,
    sums_of,
    weight_of,
)
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.stored.layers import Layers, layers_to_json
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank


def order_file(index: int) -> str:
    """Name of the working file with the stored order of a layer's neurons."""
    return f"order-{index:05d}"


def spectra(run: Session, layers: tuple[int, ...]) -> str:
    """Decompose this process's layer; its statistics are read once, or again when its width is known."""
    recipe, tokens = run.job.recipe, run.job.samples.numel()
    for index in run.own(layers):
        sums = sums_of(run, index)
        wanted = [name for name in PROJECTIONS if _may_change(run, index, name)]
        weights = partial(weight_of, run, index)
        named_weights = ((name, weights(name)) for name in wanted)
        kept = decompose(recipe, sums, tokens, named_weights, vectors=not recipe.drops)
        if not recipe.drops:
            run.files.write_tensors(spectra_file(index), kept)
        if recipe.allocation == "global":
            totals = {name: energies(recipe, kept, name) for name in wanted}
            run.files.write_tensors(energies_file(index), totals)
        del kept
        stages = stages_of(run, index)
        if len(stages) > 1:
            inner = read(run, neurons(index))[INNER]
            run.files.write_tensors(dropping_file(index), elimination(recipe, sums, inner, tokens, weights, stages))
    return "eigenvalues" if recipe.drops else "eigenvalues and eigenvectors"


def _may_change(run: Session, index: int, name: str) -> bool:
    """Whether a projection may become low rank."""
    if run.job.recipe.allocation == "global":
        return fixed_projection(run.job.config, run.job.recipe, index, name) != DENSE
    return isinstance(run.job.layers[index][name], LowRank)


def ranks(run: Session) -> str:
    """The ranks of the whole model, decided on process 0 from the energies of all."""
    mine = {
        (index, name): energy.numpy()
        for index in range(run.world.rank, run.job.config.layers, run.world.size)
        for name, energy in run.files.read_tensors(energies_file(index)).items()
    }
    every = {key: energy for part in run.world.all(mine) for key, energy in part.items()}
    curves = {index: curve for part in run.world.all(curves_of(run)) for index, curve in part.items()}
    tried = trials_of(run)
    scaled = scaled_energies(every, tried), scaled_curves(curves, tried)
    found = run.world.on_first(lambda: _decided(run, *scaled))
    run.state.layers = {"format_version": run.state.identity["format"], **layers_to_json(found)}
    low = sum(isinstance(p, LowRank) for mlp in found.values() for _, p in mlp.items())
    said = f"{low} of {len(found) * len(PROJECTIONS)} projections become low rank"
    if not run.job.recipe.drops:
        return said
    stay = sum(mlp.width for mlp in found.values()) / (len(found) * run.job.config.intermediate)
    return f"{stay:.1%} of the neurons stay, {said}"


def _decided(run: Session, every: Energies, curves: Mapping[int, Curve]) -> Layers:
    if run.job.recipe.drops:
        return global_widths(run.job.config, run.job.recipe, every, curves, run.job.limits)
    return global_ranks(run.job.config, run.job.recipe, every, run.job.limits)


def copy(run: Session) -> str:
    """Make the shards, and copy what stays as it is."""
    if run.world.first:
        writer = run.writer()
        again = {name for index in run.layers for name in _rewritten(run, index)}
        kept = [name for name in writer.entries if name in run.job.reader.tensors and name not in again]
        run.state.tensors |= {name: writer.write(name, run.job.reader.get(name)) for name in kept}
        writer.sync(kept)
    return "what stays as it is"


def _rewritten(run: Session, index: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Full name, dtype and shape of what the factors of a layer write."""
    mlp = run.layers[index]
    narrower = mlp.width < run.job.config.intermediate
    again = {name for name, p in mlp.items() if isinstance(p, LowRank) or narrower} | set(moved(mlp))
    return {
        f"{layer_prefix(index)}mlp.{tensor}": (stored_dtype(run.job, index, tensor.split(".")[0], mlp), shape)
        for tensor, shape in mlp.tensors(run.job.config.hidden).items()
        if tensor.split(".")[0] in again
    }


def factor(run: Session, layers: tuple[int, ...]) -> str:
    """Factor this process's layer, fit all of them again where that is asked, and write them on process 0."""
    mine = next((_factor(run, index) for index in run.own(layers)), None)
    if run.job.recipe.refits:
        mine = refitted(run, layers, mine)
    found = run.world.all(mine and (_records(run.job.limits, run.own(layers)[0], mine), mine.order))
    for owner, index in enumerate(layers):
        _write(run, index, owner, mine)
        records, order = found[owner] or ([], None)
        run.state.records += records
        if order is not None and run.world.first:
            run.files.write(order_file(index), [order.cpu().to(torch.int32).numpy().tobytes()])
    done = (MatrixRecord.from_dict(r, run.layers[r["layer"]].groups) for r in run.state.records)
    return ", ".join(f"{r.name.removesuffix('_proj')} {r.cell()}" for r in done if r.layer in layers)


def _factor(run: Session, index: int) -> LayerFactors:
    planned, began, recipe, tokens = run.layers[index], time.monotonic(), run.job.recipe, run.job.samples.numel()
    made_of = source_of(run, index)

    def decompositions(name: str) -> Iterator[Decomposition]:
        yield from restore(recipe, made_of.decomposed, tokens, name, made_of.weights(name))
        forget(recipe, made_of.decomposed, name)

    try:
        made = factor_layer(made_of.weights, decompositions, planned, named(recipe.form), recipe.block)
    except SvdError as error:
        raise SvdError(f"layer {index} {error}") from error
    if made.measured:
        for name, errors in stored_errors(made, made_of.weights, made_of.decomposed["inputs"] / tokens).items():
            made.measured[name] |= errors
        warn(index, made.measured)
    made = made_of.narrowed(made)
    for numbers in made.measured.values():
        numbers["seconds"] = (time.monotonic() - began) / len(made.measured)
    return replace(made, tensors={key: _waiting(run, index, key, made) for key in made.tensors})


def _waiting(run: Session, index: int, key: str, made: LayerFactors) -> Tensor:
    """A tensor of a layer as it waits to be written: as the file has it, but for down's, which a refit reads."""
    name = key.split(".")[0]
    return made.tensors[key] if name == DOWN else made.tensors[key].to(stored_dtype(run.job, index, name, made.mlp))


def _records(limits: Limits, index: int, made: LayerFactors) -> list[dict[str, Any]]:
    found = []
    for name, p in made.mlp.items():
        numbers: dict[str, Any] = {**made.measured.get(name, {}), "weight_rank": limits.get((index, name))}
        found.append(MatrixRecord(index, name, made.mlp.width, p, **numbers).to_dict())
    return found


def _write(run: Session, index: int, owner: int, mine: LayerFactors | None) -> None:
    """Bring a layer's tensors from its owner to process 0, and write them there."""
    written = []
    for full, (dtype, shape) in _rewritten(run, index).items():
        short = full.removeprefix(f"{layer_prefix(index)}mlp.")
        tensor = mine.tensors[short].to(dtype).cpu() if mine and owner == run.world.rank else None
        received = run.world.to_first(tensor, owner, torch.empty(shape, dtype=dtype, device="meta"))
        if run.world.first and received is not None:
            run.state.tensors[full] = run.writer().write(full, received)
            written.append(full)
    if run.world.first:
        run.writer().sync(written)


def orders(run: Session) -> list[str]:
    """The working files with orders, on process 0."""
    return [name for i in range(run.job.config.layers) if run.files.path(name := order_file(i)).name in run.state.files]


def write_orders(run: Session) -> None:
    """The orders of the neurons of all layers as one file beside the weights; none where nothing was moved."""
    found = orders(run)
    if not found:
        return
    width = run.job.config.intermediate
    rows = np.tile(np.arange(width, dtype=np.int32), (run.job.config.layers, 1))
    for name in found:
        order = np.frombuffer(run.files.path(name).read_bytes(), dtype=np.int32)
        rows[int(name.rpartition("-")[2])] = np.pad(order, (0, width - len(order)), constant_values=NOBODY)
    with disk_errors(run.output / ORDER), open(run.output / ORDER, "wb") as file:
        np.save(file, rows, allow_pickle=False)
