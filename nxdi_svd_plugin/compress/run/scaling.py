"""The steps that measure what one layer changed alone costs, on a text of its own.

Every process carries the dense states and the copies of the changes in its own layers, those that it decomposes, so
nothing but three numbers a change is communicated and the result does not depend on how many processes there are.
Products are float32: rounded to bfloat16, the copies differ from the dense states by roundings that cost SmolLM2 0.0005
to 0.001 nats per token, as much as a small change does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nxdi_svd_plugin.checkpoint.names import EMBEDDING
from nxdi_svd_plugin.compress.calibrate import gradient, layer, states
from nxdi_svd_plugin.compress.calibrate.trials import changed, copies, divergences, through
from nxdi_svd_plugin.compress.factor.narrow import ORDER, narrowed
from nxdi_svd_plugin.compress.factor.spectra import decompose
from nxdi_svd_plugin.compress.factor.trial import Changed, truncated_weights
from nxdi_svd_plugin.compress.plan.scaling import Change, changes, scales
from nxdi_svd_plugin.compress.run.calibration import INNER, load, neurons
from nxdi_svd_plugin.compress.run.job import Scale
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.compress.run.sources import dropping_file, read, spectra_file, sums_of, weight_of
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.report.scaling import Trial


def text_of(run: Session) -> Scale:
    """The text that losses are measured on.

    Raises:
        SvdError: the recipe has none.
    """
    if run.job.scale is None:
        raise SvdError("the recipe has no text to scale losses by; give it one (scale)")
    return run.job.scale


def embed(run: Session) -> str:
    """The inputs of the first layer."""
    rows = (layer.embed(run.job.reader, EMBEDDING, ids) for ids in text_of(run).samples)
    states.write_samples(run.files, copies(0), rows)
    return "hidden states of the text that losses are measured on"


def one_layer(run: Session, index: int) -> str:
    """The outputs of a layer for the dense states and all copies, and those of the copies that begin here."""
    own = index % run.world.size == run.world.rank
    tried = changes(run.job.config, run.job.recipe, index) if own else []
    made = [_made(run, index, change) for change in tried]
    states.write_samples(run.files, copies(index + 1), _outputs(run, index, load(run, index), made))
    mine = [_began(run, index, *one) for one in zip(tried, made, strict=True)]
    run.state.trials += [trial for part in run.world.all(mine) for trial in part]
    return "every change so far"


def _outputs(run: Session, index: int, model: Any, made: Sequence[Changed]) -> Iterator[Tensor]:
    """Of the layer as it is for all that is there, then of each change for the dense states."""
    yield from through(model, _windows(run, index), run.device)
    for change in made:
        with changed(model.layers[0].mlp, change.weights):
            dense = islice(_windows(run, index), len(text_of(run).samples))
            yield from through(model, dense, run.device)


def _windows(run: Session, index: int, start: int = 0, step: int = 1) -> Iterator[Tensor]:
    shape = text_of(run).samples.shape[1], run.job.config.hidden
    return states.read_samples(run.files, copies(index), shape, start, step)


def _began(run: Session, index: int, change: Change, made: Changed) -> dict[str, Any]:
    """What the manifest keeps of a change until its loss is measured."""
    rank = max(change.ranks.values(), default=0) * run.job.recipe.tp_degree
    at = {"rank": rank} if change.width is None else {"width": change.width}
    return {"layer": index, "kind": change.kind, "predicted": made.predicted, **at}


def head(run: Session) -> str:
    """The loss of every change, and what predicted losses are multiplied by."""
    text, last = text_of(run).samples, run.job.config.layers
    mine = [trial for trial in run.state.trials if trial["layer"] % run.world.size == run.world.rank]
    totals = [0.0] * len(mine)
    top = gradient.Head(run.job.reader, run.job.config, run.device)
    for number in range(len(text)):
        dense, *others = _windows(run, last, number, len(text))
        found = divergences(top, dense.to(run.device), others)
        totals = [total + loss for total, loss in zip(totals, found, strict=True)]
    measured = [total / text.numel() for total in totals]
    states.check_finite(copies(last), torch.tensor(measured))
    done = [{**trial, "measured": loss} for trial, loss in zip(mine, measured, strict=True)]
    every = sorted((t for part in run.world.all(done) for t in part), key=lambda t: t["layer"])
    found = scales([(trial["kind"], trial["predicted"], trial["measured"]) for trial in every])
    run.state.trials = [{**trial, "scale": scale} for trial, scale in zip(every, found, strict=True)]
    return f"losses times {min(found):.2f} to {max(found):.2f}" if found else "nothing to scale"


def trials_of(run: Session) -> list[Trial]:
    """What was measured; nothing where the recipe does not scale."""
    return [Trial(**trial) for trial in run.state.trials]


def _made(run: Session, index: int, change: Change) -> Changed:
    """The weights of a change."""
    recipe, tokens, weights = run.job.recipe, run.job.samples.numel(), partial(weight_of, run, index)
    if change.width is not None:
        order, sums = run.files.read_tensors(dropping_file(index))[ORDER], sums_of(run, index)
        found = narrowed(recipe, sums, read(run, neurons(index))[INNER], tokens, weights, order, change.width)
        return Changed(found.weights, found.loss)
    if recipe.drops:
        named = ((name, weights(name)) for name in change.ranks)
        decomposed = decompose(recipe, sums_of(run, index), tokens, named)
    else:
        decomposed = read(run, spectra_file(index))
    return truncated_weights(recipe, decomposed, tokens, weights, change.ranks)
