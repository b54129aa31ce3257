"""What `nxdi-svd bench` counts: the different MLPs of a model on one core, from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nxdi_svd_plugin.checkpoint.source import read_config, read_raw
from nxdi_svd_plugin.checkpoint.verify import compressed_config
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.errors import CheckpointError, RecipeError
from nxdi_svd_plugin.kernels.measure.calls import Part
from nxdi_svd_plugin.kernels.measure.layer import Layer
from nxdi_svd_plugin.kernels.measure.plan import shard_width
from nxdi_svd_plugin.kernels.tiling.limits import PARTITIONS
from nxdi_svd_plugin.recipe import preset
from nxdi_svd_plugin.stored.kernel_fit import fusion
from nxdi_svd_plugin.stored.layers import PROJECTIONS, Layers, parse_layers
from nxdi_svd_plugin.stored.order import split_evenly

Key = tuple[Layer, bool, bool, tuple[str, ...]]
"""(shapes, whether up_gate runs, whether down runs, projections whose pivots fit no kernel)"""


@dataclass(frozen=True)
class Ranks:
    """One set of ranks of a model: where they come from, and the layers of each kind; `refusal` if there is none."""

    origin: str
    layers: dict[Key, list[int]]
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
        return _dense(directory, ratio, tp)
    if not compressed:
        raise CheckpointError(f"{directory} is not a compressed directory; give --ratio to count a dense one")
    config = compressed_config(directory)
    layers = parse_layers(config["svd_config"], config["num_hidden_layers"])
    return [Ranks("svd_config", distinct_layers(config["hidden_size"], config["intermediate_size"], layers, tp))]


def _dense(directory: Path, ratio: float, tp: int) -> list[Ranks]:
    """Pairs as in the paper, and the default recipe's form with the block that its kernels need; one may not exist."""
    config, found = read_config(directory), []
    shard_width(config.intermediate, tp)
    for name, block in (("paper", PARTITIONS), ("default", PARTITIONS * tp)):
        recipe = preset(name).with_changes({"ratio": ratio, "block": block})
        origin = f"Eq. 5, {recipe.form}, ratio {ratio}, block {block}"
        try:
            layers = decide_ranks(config, recipe)
        except RecipeError as error:
            found.append(Ranks(origin, {}, str(error)))
            continue
        found.append(Ranks(origin, distinct_layers(config.hidden, config.intermediate, layers, tp)))
    if all(ranks.refusal for ranks in found):
        raise RecipeError("; ".join(ranks.refusal for ranks in found))
    return found


def distinct_layers(hidden: int, intermediate: int, layers: Layers, tp: int) -> dict[Key, list[int]]:
    """Layers that are alike on one of `tp` cores."""
    width = shard_width(intermediate, tp)
    found: dict[Key, list[int]] = {}
    for index, projections in layers.items():
        stored = {name: p.pivots for name, p in projections.items() if p.pivots}
        local = split_evenly(stored, intermediate, tp)[1] if stored else {}
        kernels = fusion(projections, local, width)
        parts = [
            Part(projections[n].rank, sum(b - a for a, b in local.get(n, ())), kernels.pivots.get(n, ()))
            for n in PROJECTIONS
        ]
        key = Layer(hidden, width, *parts), kernels.up_gate, kernels.down, kernels.misfit
        found.setdefault(key, []).append(index)
    return found
