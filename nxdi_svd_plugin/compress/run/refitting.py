"""The refit of a layer's down projection, over two streams of hidden states on disk: the dense model's, which the
calibration has left, and that behind the compressed layers.

A layer is passed once, for the sums; what its MLP is added to and what near of down reads wait on disk, and with the
new near they make what goes on to the next layer. Every process passes its own samples.
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
from nxdi_svd_plugin.compress.factor.refit import DOWN, RIDGE, Added, fit_down, refits
from nxdi_svd_plugin.compress.factor.rounding import bf16_error, stored_layer
from nxdi_svd_plugin.compress.factor.running import RunningMlp
from nxdi_svd_plugin.compress.run import calibration
from nxdi_svd_plugin.compress.run.job import stored_dtype
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.compress.run.sources import weight_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank


def reads(layers: tuple[int, ...]) -> list[str]:
    """The working files that the refit of these layers reads: what comes out of the compressed layers before them, and
    what comes out of each in the dense model."""
    return [_inputs(layers[0]), *(states.hidden(i + 1) for i in layers)]


def done_with(layers: tuple[int, ...]) -> list[str]:
    """Those, and those between these layers, which no later layer reads."""
    return [*map(_inputs, layers), *(states.hidden(i + 1) for i in layers)]


def _inputs(layer: int) -> str:
    return states.prefix(layer) if layer else states.hidden(0)


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
    began = time.monotonic()
    with quick_products():
        if not refits(made, run.job.config.intermediate):
            mlp = _running(run, index, made)
            _hand_on(run, index, (middle + mlp.down(read) for middle, _, read in _inside(run, index, mlp)))
            return made
        sums = _sums(run, index, _running(run, index, made))
        made = fit_down(made, sums, RIDGE * run.job.recipe.damping)
        _hand_on(run, index, _behind(run, index, _running(run, index, made)))
    run.files.drop(states.middle(index))
    numbers = made.measured[DOWN]
    if isinstance(down := made.mlp[DOWN], LowRank) and sums.first is not None:
        numbers["bf16_error"] = bf16_error(stored_layer(made, DOWN, down, run.job.config.hidden).float(), sums.first)
    numbers["seconds"] = (numbers.get("seconds") or 0.0) + time.monotonic() - began
    return made


def _running(run: Session, index: int, made: LayerFactors) -> RunningMlp:
    dtypes = {name: stored_dtype(run.job, index, name, made.mlp) for name in PROJECTIONS}
    return RunningMlp(made, partial(weight_of, run, index), dtypes)


def _samples(run: Session, name: str) -> Iterator[Tensor]:
    return (sample.to(run.device) for sample in states.read_samples(run.files, name, run.shape))


def _inside(run: Session, index: int, mlp: RunningMlp) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of every sample: what the MLP is added to, what down reads, what near of down reads."""
    model = UpToMlp(calibration.load(run, index))
    for hidden in _samples(run, _inputs(index)):
        middle = model.middle(hidden)
        z = mlp.neurons(model.read(middle))
        yield middle, z, mlp.gathered(z)


def _sums(run: Session, index: int, mlp: RunningMlp) -> Added:
    """Over all processes; what waits for the new near goes to the disk."""
    sums = Added.zero(mlp.read_by_near, run.job.config.hidden, run.device)
    states.write_samples(run.files, states.middle(index), _summed(run, index, mlp, sums))
    return sums.total(run.world.total)


def _summed(run: Session, index: int, mlp: RunningMlp, sums: Added) -> Iterator[Tensor]:
    """What waits for the new near, once it is in the sums."""
    wanted = _samples(run, states.hidden(index + 1))
    for (middle, z, read), after in zip(_inside(run, index, mlp), wanted, strict=True):
        sums.add(z, read, mlp.down(read), after - middle)
        yield torch.cat([middle, read], 1)


def _behind(run: Session, index: int, mlp: RunningMlp) -> Iterator[Tensor]:
    """The outputs of the layer."""
    (length, hidden), n = run.shape, mlp.read_by_near
    for sample in states.read_samples(run.files, states.middle(index), (length, hidden + n)):
        middle, read = sample.to(run.device).tensor_split([hidden], 1)
        yield middle + mlp.down(read)


def _hand_on(run: Session, index: int, outputs: Iterator[Tensor]) -> None:
    """To the next layer, if there is one."""
    if index + 1 < run.job.config.layers:
        states.write_samples(run.files, states.prefix(index + 1), outputs)
