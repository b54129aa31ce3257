"""The steps that run the calibration text through the model: embed, forward, head, backward.

One layer, or the head, is in memory at a time; hidden states and loss gradients of the layer boundaries are on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.names import EMBEDDING
from nxdi_svd_plugin.compress.calibrate import gradient, layer, states
from nxdi_svd_plugin.compress.calibrate import inner as sums_of_neurons
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.products import quick_products
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, statistics_shapes
from nxdi_svd_plugin.compress.plan.widths import layer_widths
from nxdi_svd_plugin.compress.run.session import Session

INNER = "inner"
"""Name of z z^T in its file."""


def statistics(index: int) -> str:
    """Name of the working file with the statistics of a layer."""
    return f"statistics-{index:05d}"


def neurons(index: int) -> str:
    """Name of the working file with the covariance of a layer's neurons, where some may be dropped."""
    return f"neurons-{index:05d}"


def embed(run: Session) -> str:
    """The inputs of the first layer."""
    rows = (layer.embed(run.job.reader, EMBEDDING, run.job.samples[i]) for i in run.mine)
    states.write_samples(run.files, states.hidden(0), rows)
    return "hidden states"


def forward(run: Session, index: int) -> str:
    """The outputs of a layer from its inputs; its statistics, if they need no gradient."""
    if run.job.recipe.differentiates:
        with quick_products():
            model = load(run, index)
            states.write_samples(run.files, states.hidden(index + 1), outputs(run, index, model))
        return "hidden states"
    model, sums = load(run, index), nothing(run)
    with layer.Collector(model, groups(run), sums):
        if index + 1 < run.job.config.layers:
            states.write_samples(run.files, states.hidden(index + 1), outputs(run, index, model))
        else:  # nothing reads what the last layer puts out
            for _ in outputs(run, index, model):
                pass
    save_statistics(run, index, sums)
    return "statistics"


def outputs(run: Session, index: int, model: Any) -> Iterator[torch.Tensor]:
    """Of a layer, one sample at a time."""
    for sample in states.read_samples(run.files, states.hidden(index), run.shape):
        yield layer.run_sample(model, sample.to(run.device))
        run.progress.step()


def load(run: Session, index: int) -> Any:
    """A layer as a model."""
    return layer.load_layer(run.job.reader, run.job.config, index, run.device)


def head(run: Session) -> str:
    """The loss gradient at the last layer's output."""
    with quick_products():
        states.write_samples(run.files, states.gradient(run.job.config.layers), _gradients_of_head(run))
    return "loss gradient"


def _gradients_of_head(run: Session) -> Iterator[torch.Tensor]:
    top = gradient.Head(run.job.reader, run.job.config, run.device)
    inputs = states.read_samples(run.files, states.hidden(run.job.config.layers), run.shape)
    for number, sample in zip(run.mine, inputs, strict=True):
        yield top.gradient(sample.to(run.device), run.job.recipe.calibration.seed + number)
        run.progress.step()


def backward(run: Session, index: int) -> str:
    """The loss gradient at a layer's input from that at its output, and the statistics of its MLP."""
    inner = None
    if len(layer_widths(run.job.config, run.job.recipe, index)) > 1:
        inner = sums_of_neurons.nothing(run.job.config.intermediate, run.device)
    with quick_products():
        back = gradient.LayerBackward(load(run, index), groups(run), nothing(run), inner)
        states.write_samples(run.files, states.gradient(index), _gradients(run, index, back))
    back.statistics.mirror()
    save_statistics(run, index, back.statistics, inner)
    return "statistics"


def _gradients(run: Session, index: int, back: gradient.LayerBackward) -> Iterator[torch.Tensor]:
    inputs = states.read_samples(run.files, states.hidden(index), run.shape)
    above = states.read_samples(run.files, states.gradient(index + 1), run.shape)
    for sample, slope in zip(inputs, above, strict=True):
        yield back.gradient(sample.to(run.device), slope.to(run.device))
        run.progress.step()


def groups(run: Session) -> Groups:
    """The slices of the intermediate neurons."""
    return Groups.of(run.job.config, run.job.recipe)


def nothing(run: Session) -> Statistics:
    """The statistics of a layer before the first sample."""
    return Statistics.zero(statistics_shapes(groups(run), run.job.recipe.objective), run.device)


def save_statistics(run: Session, index: int, sums: Statistics, inner: torch.Tensor | None = None) -> None:
    """Sum over all processes, and store where they will be needed: on the process that decomposes the layer."""
    total = sums.total(run.world.total)
    states.check_finite(statistics(index), *total.sums.values())
    between = None if inner is None else run.world.total(inner)
    if index % run.world.size == run.world.rank:
        run.files.write_tensors(statistics(index), total.sums)
        if between is not None:
            run.files.write_tensors(neurons(index), {INNER: sums_of_neurons.whole(between)})
