"""What `nxdi-svd bench` counts: the different MLPs of a model on one core, from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nxdi_svd_plugin.checkpoint.source import SourceConfig, read_compressed, read_config, read_raw
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.errors import CheckpointError, RecipeError
from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.kernels.measure.layer import Layer, on_core
from nxdi_svd_plugin.kernels.measure.plan import shard_width
from nxdi_svd_plugin.recipe import preset
from nxdi_svd_plugin.stored.kernel_fit import KernelFit, kernel_fit
from nxdi_svd_plugin.stored.layers import Layers, alike


@dataclass(frozen=True)
class Kind:
    """Layers that store the same: what one core has of each, and what the kernels take of it."""

    indices: list[int]
    layer: Layer
    fit: KernelFit


@dataclass(frozen=True)
class Ranks:
    """One set of ranks of a model: where they come from, and the kinds of layers; `refusal` if there is none."""

    origin: str
    kinds: list[Kind]
    refusal: str = ""


def ranks_of(directory: Path, ratio: float | None, tp: int) -> list[Ranks]:
    """A compressed model's own ranks; of a dense one, those of Eq. 5 for `ratio`.

    Raises:
        CheckpointError: no usable config.json, or a dense model without a ratio.
        RecipeError: a ratio beside a compressed model's ranks, or one that no form can meet.
        SvdError: `tp` does not divide the intermediate size or the pivots.
    """
    compressed = "svd_config" in read_raw(directory)
    if compressed and ratio is not None:
        raise RecipeError(f"{directory} is compressed and has its own ranks; leave out --ratio {ratio}")
    if ratio is not None:
        return _dense(read_config(directory), ratio, tp)
    if not compressed:
        raise CheckpointError(f"{directory} is not a compressed directory; give --ratio to count a dense one")
    config = read_compressed(directory)
    return [Ranks("svd_config", _kinds(config.dense, config.layers, tp))]


def _dense(config: SourceConfig, ratio: float, tp: int) -> list[Ranks]:
    """Pairs as in the paper, and the default recipe's form in as many groups as cores; one may not exist."""
    shard_width(config.intermediate, tp)
    found = []
    for name, groups in (("paper", 1), ("default", tp)):
        recipe = preset(name).with_changes({"ratio": ratio, "block": PARTITIONS, "tp_degree": groups})
        origin = f"Eq. 5, {recipe.form}, ratio {ratio}, {groups} group{'s' * (groups > 1)}"
        try:
            layers = decide_ranks(config, recipe)
        except RecipeError as error:
            found.append(Ranks(origin, [], str(error)))
            continue
        found.append(Ranks(origin, _kinds(config, layers, tp)))
    if all(ranks.refusal for ranks in found):
        raise RecipeError("; ".join(dict.fromkeys(ranks.refusal for ranks in found)))
    return found


def _kinds(config: SourceConfig, layers: Layers, tp: int) -> list[Kind]:
    return [
        Kind(indices, on_core(config.hidden, config.intermediate, mlp, tp), kernel_fit(mlp, tp))
        for mlp, indices in alike(layers).items()
    ]
