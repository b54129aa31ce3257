"""What a compression will take: disk, memory and work, modelled from the sizes in config.json and the recipe.

One layer (or the head) is in memory at a time, so the number of layers is in no figure but disk and work. Resident
sizes are modelled, not measured; benchmarks/compress.py compares them with measured peaks.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from nxdi_svd_plugin.checkpoint.source import SourceConfig, projections
from nxdi_svd_plugin.checkpoint.tensors import expected_tensors, layer_tensors
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.sizes import AT_ONCE, SLICE
from nxdi_svd_plugin.compress.calibrate.statistics import kept_names, statistics_shapes
from nxdi_svd_plugin.compress.plan.ranks import fixed_projection
from nxdi_svd_plugin.compress.plan.scaling import SAMPLES, changes, window_length
from nxdi_svd_plugin.compress.plan.widths import LEAST, layer_widths
from nxdi_svd_plugin.factorize.itemsize import itemsize
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.layers import Layers
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

LIBRARIES = 500 * 2**20
"""Python with torch and transformers loaded, measured with torch 2.13 on x86."""


@dataclass(frozen=True)
class Memory:
    """Modelled bytes of each phase, and the largest."""

    load: int
    calibrate: int
    factor: int

    @property
    def peak(self) -> int:
        """The largest phase with the libraries."""
        return LIBRARIES + max(self.load, self.calibrate, self.factor)


@dataclass(frozen=True)
class Disk:
    """Modelled bytes of the working files at their largest.

    states: hidden states and loss gradients, or those of the trials that scale losses. spectra: statistics and what is
    kept of them for the factors.
    """

    states: int
    spectra: int


def peak_memory(config: SourceConfig, recipe: Recipe) -> Memory:
    """Peak of each phase in one process, in bytes.

    load: the largest tensor (an embedding) as stored and its copy. calibrate: one layer in float32 with one stored
    tensor, its float64 sums, the activations of one sample; with gradients the head or what autograd keeps of a
    sample. factor: the sums and a decomposition with its workspace, or what is kept of a layer, one decomposition,
    what is stored of the projections, and one of them truncated with its solution, in float64, beside weights of
    the neurons that stay where some may be dropped; the covariance of these and its root; the sums of a refit. The
    trials that scale losses hold a layer, the weights of its changes and what goes through it together, or the head
    and the logits of two windows and their odds; their weights are made as factors are.
    """
    sizes = {name: math.prod(shape) for name, shape in expected_tensors(config).items()}
    square, wide = 8 * config.hidden**2, 8 * config.hidden * config.intermediate
    groups = Groups.of(config, recipe)
    sums = statistics_bytes(groups, recipe)
    decompose = sums + 3 * wide + 4 * square + spectra_bytes(groups)
    factors = kept_bytes(groups, recipe) + 6 * square + len(PROJECTIONS) * wide + 3 * wide
    neurons, weights = neurons_bytes(groups, recipe), 4 * len(PROJECTIONS) * config.hidden * config.intermediate
    narrow = max(sums + neurons.eliminated, neurons.fitted, refit_bytes(config, recipe))
    layer = _layer(config, recipe, layer_numbers(config)) + sums + neurons.summed
    return Memory(
        load=8 * max(sizes.values()),
        calibrate=max(_head(config, recipe), layer, _trials(config, recipe)),
        factor=max(max(decompose, factors) + recipe.drops * weights, narrow),
    )


@dataclass(frozen=True)
class Neurons:
    """Bytes of the covariance of a layer's neurons where some may be dropped, else 0.

    summed: float64. stored: float32. eliminated: all of it, the damped part of a group and its Cholesky root, or what
    half of the neurons have to do with each other and the rest, with M and an update of it. fitted: as stored, and
    those that stay with down, both sides of the equations and their solution. The last two in the precision of their
    products.
    """

    summed: int
    stored: int
    eliminated: int
    fitted: int


def neurons_bytes(groups: Groups, recipe: Recipe) -> Neurons:
    """Of one layer."""
    if not recipe.drops:
        return Neurons(0, 0, 0, 0)
    square, wide = groups.intermediate**2, groups.hidden * groups.intermediate
    each = itemsize(groups.intermediate, recipe.damping)
    part = max(2 * square // groups.count**2, 3 * square // 4 * (groups.count > 1))
    eliminated = each * (square + part + 2 * wide)
    return Neurons(8 * square, 4 * square, eliminated, 4 * square + each * (square + 4 * wide))


def statistics_bytes(groups: Groups, recipe: Recipe) -> int:
    """Of the sums of one layer."""
    return 8 * sum(math.prod(shape) for shape in statistics_shapes(groups, recipe.objective).values())


def spectra_bytes(groups: Groups) -> int:
    """Of the energies and eigenvectors of one layer."""
    return 8 * len(PROJECTIONS) * groups.count * groups.side * (groups.side + 1)


def kept_bytes(groups: Groups, recipe: Recipe) -> int:
    """Of what waits for the factors of one layer."""
    shapes = statistics_shapes(groups, recipe.objective)
    again = sum(math.prod(shapes[name]) for name in kept_names(groups, recipe.objective))
    return 8 * again + spectra_bytes(groups)


def layer_numbers(config: SourceConfig) -> int:
    """Numbers in one decoder layer."""
    return sum(map(math.prod, layer_tensors(config).values()))


def _head(config: SourceConfig, recipe: Recipe) -> int:
    """Bytes for the loss gradient at the head: its weight as stored and in float32, logits of SLICE tokens twice."""
    if not recipe.differentiates:
        return 0
    vocab = int(config.raw["vocab_size"])
    return 8 * vocab * config.hidden + 2 * 4 * min(SLICE, recipe.calibration.length) * vocab


def _layer(config: SourceConfig, recipe: Recipe, layer: int) -> int:
    """Bytes for one layer: its weights in float32 and one as stored, and the activations of one sample."""
    length, heads = recipe.calibration.length, int(config.raw["num_attention_heads"])
    weights = 4 * layer + 8 * config.hidden * config.intermediate
    if not recipe.differentiates:
        return weights + 4 * length * (4 * config.intermediate + 10 * config.hidden) + 8 * length * config.hidden
    return weights + 4 * length * (8 * config.intermediate + 24 * config.hidden) + 2 * 4 * heads * length * length


def _trials(config: SourceConfig, recipe: Recipe) -> int:
    """Bytes of the trials that scale losses, in a layer or at the head."""
    if recipe.scale is None:
        return 0
    vocab, most = int(config.raw["vocab_size"]), max(len(changes(config, recipe, i)) for i in range(config.layers))
    weights = 4 * layer_numbers(config) + (1 + most * len(PROJECTIONS)) * 4 * config.hidden * config.intermediate
    layer = weights + 4 * AT_ONCE * (4 * config.intermediate + 10 * config.hidden)
    return max(layer, 8 * vocab * config.hidden + 3 * 4 * window_length(recipe) * vocab)


def copies(config: SourceConfig, recipe: Recipe) -> list[int]:
    """How many copies of the text that losses are measured on go through each layer, and last through the head: the
    dense one and one for every change of this layer and those before it; 0 where the recipe does not scale."""
    if recipe.scale is None:
        return [0] * (config.layers + 1)
    counted = itertools.accumulate((len(changes(config, recipe, i)) for i in range(config.layers)), initial=1)
    return [*list(counted)[1:], 1 + sum(len(changes(config, recipe, i)) for i in range(config.layers))]


def scaling_work(config: SourceConfig, recipe: Recipe) -> int:
    """Floating-point operations of the trials: 2 a weight and token of every copy."""
    *through, last = copies(config, recipe)
    tokens = SAMPLES * window_length(recipe)
    return 2 * tokens * (sum(through) * layer_numbers(config) + last * config.hidden * int(config.raw["vocab_size"]))


def disk_needs(config: SourceConfig, recipe: Recipe, tokens: int, processes: int = 1) -> Disk:
    """Working files at their largest: hidden states of one boundary or, with gradients, of all and two of gradients, or
    what a refit has of a layer and between those that are decomposed together; statistics of these; what is kept of
    those that wait for their factors."""
    boundaries = config.layers + 3 if recipe.differentiates else 2
    if recipe.refits:
        boundaries += min(processes, config.layers) - 1 + math.ceil(_read_by_near(config, recipe) / config.hidden)
    tried = 4 * SAMPLES * window_length(recipe) * config.hidden * sum(copies(config, recipe)[-2:])
    groups, together = Groups.of(config, recipe), min(processes, config.layers)
    waiting = together if recipe.is_paper else config.layers
    sums = statistics_bytes(groups, recipe)
    if recipe.drops:  # all statistics wait for the widths
        spectra = waiting * (sums + neurons_bytes(groups, recipe).stored)
    else:
        spectra = together * sums + waiting * kept_bytes(groups, recipe)
    return Disk(max(4 * tokens * config.hidden * boundaries, tried), spectra)


def calibration_work(config: SourceConfig, recipe: Recipe, tokens: int) -> int:
    """Floating-point operations of the calibration: 2 a weight and token forward, 2 more forward and 2 back for the
    gradient (activations only), the head, and the sums."""
    shapes = statistics_shapes(Groups.of(config, recipe), recipe.objective).values()
    numbers = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    numbers += config.intermediate**2 // 2 if recipe.drops else 0  # of a symmetric matrix
    sums = 2 * tokens * config.layers * numbers
    forward = 2 * tokens * layer_numbers(config) * config.layers
    if not recipe.differentiates:
        return forward + sums
    return 3 * forward + 4 * tokens * config.hidden * int(config.raw["vocab_size"]) + sums


def eigendecompositions(config: SourceConfig, recipe: Recipe, layers: Layers) -> tuple[int, int]:
    """How many symmetric matrices are decomposed at most, one a group of every projection that is not fixed dense, and
    their side. Where neurons may be dropped it is done again for what stays, and for the trials that scale losses."""
    groups = Groups.of(config, recipe)
    if recipe.drops:
        times = 2 if recipe.scale is None else 3
        low = times * sum(fixed_projection(config, recipe, *key) != DENSE for key in projections(config))
    else:
        low = sum(isinstance(p, LowRank) for mlp in layers.values() for _, p in mlp.items())
    return groups.count * low, groups.side


def elimination_work(config: SourceConfig, recipe: Recipe) -> int:
    """Floating-point operations of choosing the neurons that go: in each of g groups, inverses (I^3 / g^3) and updates
    of half of what is left of them (down to a share l: 1/3 (1 - l^3) of that); of M [I, H], updates (I^2 H (1 - l^2) /
    g in all)."""
    layers = sum(len(layer_widths(config, recipe, i)) > 1 for i in range(config.layers))
    neurons = config.intermediate
    inverses = neurons**3 / recipe.tp_degree**2 * (1 + (1 - LEAST**3) / 3)
    return int(layers * (inverses + neurons**2 * config.hidden / recipe.tp_degree * (1 - LEAST**2)))


def _read_by_near(config: SourceConfig, recipe: Recipe) -> int:
    """The most numbers that near of down reads, or down itself where a layer may be narrower and down dense."""
    groups = Groups.of(config, recipe)
    return config.intermediate if recipe.drops else groups.count * groups.side


def refit_bytes(config: SourceConfig, recipe: Recipe) -> int:
    """Of a layer's refit, at most, 0 without one: its factors, down's in float64, and, with the r inputs of near of
    down, the layer in float32, its factors as they run and the sums, or the sums, a root and two solutions, and far's
    square where it is low rank."""
    if not recipe.refits:
        return 0
    hidden, wide = config.hidden, config.hidden * config.intermediate
    read, low = _read_by_near(config, recipe), min(config.intermediate, recipe.tp_degree * hidden)
    summed = 4 * (layer_numbers(config) + len(PROJECTIONS) * wide) + 8 * (read**2 + hidden * read)
    solved = 8 * (max(2 * read**2, 3 * low**2) + 3 * hidden * read)
    return (8 + 2 * 4) * wide + max(summed, solved)


def refit_work(config: SourceConfig, recipe: Recipe, tokens: int) -> int:
    """Floating-point operations of the refit, at most: a pass of every layer, near of down once more, the sum of what
    it reads and its product with what is missing, and the equations."""
    hidden, read = config.hidden, _read_by_near(config, recipe)
    passes = 2 * tokens * (layer_numbers(config) + hidden * read)
    sums = 2 * tokens * (read**2 // 2 + read * hidden)
    return config.layers * (passes + sums + read**3 // 3 + 2 * hidden * read**2)
