"""What a layer's factors are made of: weights, statistics and decompositions, of the neurons that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from nxdi_svd_plugin.checkpoint.names import projection_prefix
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics
from nxdi_svd_plugin.compress.factor.layer import LayerFactors
from nxdi_svd_plugin.compress.factor.narrow import DOWN, LOSSES, ORDER, WRITES, Weights, kept_sums, narrowed
from nxdi_svd_plugin.compress.factor.spectra import decompose
from nxdi_svd_plugin.compress.plan.widths import Curve, all_stay, curve_of, layer_widths
from nxdi_svd_plugin.compress.run.calibration import INNER, neurons, statistics
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.stored.projection import DENSE, LowRank


def spectra_file(index: int) -> str:
    """Name of the working file with the decomposition of a layer."""
    return f"spectra-{index:05d}"


def energies_file(index: int) -> str:
    """Name of the working file with the energies of a layer's projections, which the ranks are decided from."""
    return f"energies-{index:05d}"


def dropping_file(index: int) -> str:
    """Name of the working file that says which neurons of a layer go first, and what that costs."""
    return f"dropping-{index:05d}"


def sums_files(run: Session, index: int) -> list[str]:
    """Names of the working files with the statistics of a layer."""
    return [statistics(index), *([neurons(index)] if stages_of(run, index)[1:] else [])]


def loss_files(run: Session, index: int) -> list[str]:
    """Names of those that widths and ranks are decided from."""
    return [energies_file(index), *([dropping_file(index)] if stages_of(run, index)[1:] else [])]


def factor_files(run: Session, index: int) -> list[str]:
    """Names of those that factors are made from: the decomposition, or what it is made from once the width is known."""
    if not run.job.recipe.drops:
        return [spectra_file(index)]
    return [*sums_files(run, index), *loss_files(run, index)[1:]]


def stages_of(run: Session, index: int) -> list[int]:
    """The widths that a layer may have, descending; the first is the whole."""
    return layer_widths(run.job.config, run.job.recipe, index)


def sums_of(run: Session, index: int) -> Statistics:
    """The statistics of a layer."""
    return Statistics(read(run, statistics(index)))


def read(run: Session, name: str) -> dict[str, Tensor]:
    """The tensors of a working file, on the device."""
    return {key: tensor.to(run.device) for key, tensor in run.files.read_tensors(name).items()}


def curves_of(run: Session) -> dict[int, Curve]:
    """What dropping costs in this process's layers."""
    found = {}
    for index in range(run.world.rank, run.job.config.layers, run.world.size):
        stages = stages_of(run, index)
        if not stages[1:]:
            found[index] = all_stay(run.job.config)
            continue
        dropping = run.files.read_tensors(dropping_file(index))
        shares = {name: dropping[name].tolist() for name in WRITES}
        found[index] = curve_of(stages, dropping[LOSSES].numpy(), shares)
    return found


def weight_of(run: Session, index: int, name: str) -> Tensor:
    """A projection's weight in the source, on the device."""
    return run.weight(projection_prefix(index, name) + "weight")


@dataclass(frozen=True)
class Source:
    """weights: projection to torch weight of the layer's width. decomposed: what `decompose` gave for them.

    kept: [k] the numbers of these neurons in the source, None where none was dropped; drop_loss: what that costs.
    """

    weights: Weights
    decomposed: dict[str, Tensor]
    kept: Tensor | None = None
    drop_loss: float = 0.0

    def narrowed(self, made: LayerFactors) -> LayerFactors:
        """The same with dense projections of the layer's width, the source's numbers of the neurons, and the loss."""
        if self.kept is None:
            return made
        order = self.kept if made.order is None else self.kept[made.order.to(self.kept.device)]
        dense = {f"{name}.weight": self.weights(name) for name, p in made.mlp.items() if p == DENSE}
        measured = {**made.measured, DOWN: {**made.measured.get(DOWN, {}), "drop_loss": self.drop_loss}}
        return replace(made, tensors={**dense, **made.tensors}, order=order, measured=measured)


def source_of(run: Session, index: int) -> Source:
    """What a layer is made of, at the width that was decided."""
    recipe, planned, weights = run.job.recipe, run.layers[index], partial(weight_of, run, index)
    if not recipe.drops:
        return Source(weights, read(run, spectra_file(index)))
    tokens = run.job.samples.numel()
    low = [name for name, p in planned.items() if isinstance(p, LowRank)]
    if planned.width == run.job.config.intermediate:
        return Source(weights, decompose(recipe, sums_of(run, index), tokens, ((name, weights(name)) for name in low)))
    order, sums = run.files.read_tensors(dropping_file(index))[ORDER], sums_of(run, index)
    inner = read(run, neurons(index))[INNER]
    found = narrowed(recipe, sums, inner, tokens, weights, order, planned.width)
    sums = kept_sums(recipe, sums, inner, weights, found)
    del inner
    decomposed = decompose(recipe, sums, tokens, ((name, found.weights[name]) for name in low))
    return Source(found.weights.__getitem__, decomposed, found.kept, found.loss)
