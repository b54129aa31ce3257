"""The refit of a layer's factors, over two streams of hidden states on disk: the dense model's, which the calibration
has left, and that behind the compressed layers, as its difference from the other.

A layer is passed twice: once for what gate and up read and once for the neurons; a third time for what goes on to the
next layer. The hidden state that its MLP is added to waits on disk in between. Every process passes its own samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nxdi_svd_plugin.compress.calibrate import states
from nxdi_svd_plugin.compress.calibrate.layer import UpToMlp
from nxdi_svd_plugin.compress.calibrate.products import quick_products
from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.compress.factor.refit import DOWN, RIDGE, Added, Drift, fit_down, fit_reads, parts, refits
from nxdi_svd_plugin.compress.factor.running import RunningMlp, running_errors
from nxdi_svd_plugin.compress.run import calibration
from nxdi_svd_plugin.compress.run.job import stored_dtype
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.compress.run.sources import weight_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS


def reads(layers: tuple[int, ...]) -> list[str]:
    """The working files that the refit of these layers reads: what goes in and out of them in the dense model, and what
    comes out of the compressed ones before them."""
    behind = [states.prefix(layers[0])] if layers[0] else []
    return [*map(states.hidden, (*layers, layers[-1] + 1)), *behind]


def done_with(layers: tuple[int, ...], count: int) -> list[str]:
    """Those, and those that it wrote, that no later layer of a model of `count` layers reads."""
    last = [states.hidden(count)] if layers[-1] + 1 == count else []
    behind = [states.prefix(i) for i in layers if i]
    return [*map(states.hidden, layers), *last, *behind, *map(states.middle, layers)]


def refitted(run: Session, layers: tuple[int, ...], mine: LayerFactors | None) -> LayerFactors | None:
    """The factors of this process's layer, fitted again; `layers` are passed one after the other, by all processes."""
    for owner, index in enumerate(layers):
        own = run.world.rank == owner
        made = run.world.all(_on(mine, torch.device("cpu")) if own and mine else None)[owner]
        if made is not None:
            made = _refit(run, index, _on(made, run.device))
            mine = made if own else mine
    return mine


def _on(made: LayerFactors, device: torch.device) -> LayerFactors:
    return replace(made, tensors={name: tensor.to(device) for name, tensor in made.tensors.items()})


def _refit(run: Session, index: int, made: LayerFactors) -> LayerFactors:
    began, damping = time.monotonic(), RIDGE * run.job.recipe.damping
    names = refits(made, run.job.config.intermediate)
    with quick_products():
        model = UpToMlp(calibration.load(run, index))
        drift = _drift(run, index, model)
        made = fit_reads(made, drift, damping)
        mlp = _running(run, index, made)
        if DOWN in names:
            made = fit_down(made, _added(run, index, model, mlp, parts(made, DOWN)[0].shape[1]), damping)
            mlp = _running(run, index, made)
        if index + 1 < run.job.config.layers:
            states.write_samples(run.files, states.prefix(index + 1), _behind(run, index, model, mlp))
    inputs = drift.read / run.job.samples.numel()
    for name, error in running_errors(made, mlp, inputs).items():
        made.measured[name]["bf16_error"] = error
    for name in names:
        spent = (time.monotonic() - began) / len(names)
        made.measured[name]["seconds"] = (made.measured[name].get("seconds") or 0.0) + spent
    return made


def _running(run: Session, index: int, made: LayerFactors) -> RunningMlp:
    dtypes = {name: stored_dtype(run.job, index, name, made.mlp) for name in PROJECTIONS}
    return RunningMlp(made, partial(weight_of, run, index), dtypes)


def _drift(run: Session, index: int, model: UpToMlp) -> Drift:
    """What gate and up read; what the MLP is added to goes to the disk."""
    sums = Drift.zero(run.job.config.hidden, run.device)
    states.write_samples(run.files, states.middle(index), _middles(run, index, model, sums))
    return sums.total(run.world.total)


def _middles(run: Session, index: int, model: UpToMlp, sums: Drift) -> Iterator[Tensor]:
    for dense, moved in zip(_samples(run, states.hidden(index)), _moved(run, index), strict=True):
        middle = model.middle(dense + moved)
        x = model.read(middle)
        sums.add(x, x - model.read(model.middle(dense)))
        yield middle


def _samples(run: Session, name: str) -> Iterator[Tensor]:
    return (sample.to(run.device) for sample in states.read_samples(run.files, name, run.shape))


def _moved(run: Session, index: int) -> Iterator[Tensor]:
    """How far the inputs of a layer have moved: nowhere before the first."""
    if index:
        return _samples(run, states.prefix(index))
    return (torch.zeros(run.shape, device=run.device) for _ in run.mine)


def _added(run: Session, index: int, model: UpToMlp, mlp: RunningMlp, rank: int) -> Added:
    """What near of down reads, and what is missing from its output."""
    sums = Added.zero(rank, run.job.config.hidden, run.device)
    for middle, after in _both(run, index):
        z = mlp.neurons(model.read(middle))
        read = mlp.gathered(z)
        sums.add(z, read, mlp.down(read), after - middle)
    return sums.total(run.world.total)


def _behind(run: Session, index: int, model: UpToMlp, mlp: RunningMlp) -> Iterator[Tensor]:
    """How far the outputs of the layer have moved, in differences of the size of what is added to the middle."""
    for middle, after in _both(run, index):
        yield mlp.down(mlp.gathered(mlp.neurons(model.read(middle)))) - (after - middle)


def _both(run: Session, index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the MLP is added to behind compressed layers, and what the dense model has after the layer."""
    return zip(_samples(run, states.middle(index)), _samples(run, states.hidden(index + 1)), strict=True)
