"""Peak memory of a compression, modelled from the sizes in config.json.

Two phases alternate for every layer and neither keeps anything of another layer, so the number of layers is not in the
formula. Resident sizes are modelled, not measured; benchmarks/compress.py compares them with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

from nxdi_svd_plugin.checkpoint.source import SourceConfig, expected_tensors
from nxdi_svd_plugin.compress.plan.two_pass_cost import backward_memory, head_memory, needed
from nxdi_svd_plugin.recipe import Recipe

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


def peak_memory_model(config: SourceConfig, recipe: Recipe) -> Memory:
    """Peak of each phase in one process, in bytes.

    load: the largest tensor (an embedding) as stored and its copy. calibrate: one layer in float32 with one stored
    tensor, two [hidden, hidden] float64 sums, the activations of one sample. factor: the two sums, one weight and one
    factor in float64, and seven [hidden, hidden] float64 matrices at the height of the eigendecomposition.
    """
    hidden, intermediate, length = config.hidden, config.intermediate, recipe.calibration.length
    sizes = {name: _count(shape) for name, shape in expected_tensors(config).items()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    square, wide = 8 * hidden * hidden, 8 * hidden * intermediate
    if needed(recipe):
        return _two_pass(config, recipe, layer, 8 * max(sizes.values()))
    activations = 4 * length * (4 * intermediate + 10 * hidden) + 8 * length * hidden
    return Memory(
        load=8 * max(sizes.values()),
        calibrate=4 * layer + 8 * hidden * intermediate + 2 * square + activations,
        factor=2 * square + 3 * wide + 7 * square,
    )


def _two_pass(config: SourceConfig, recipe: Recipe, layer: int, load: int) -> Memory:
    """The same for a two-pass recipe: calibrate is the larger of head and backward; factor has the statistics of a
    layer, its three weights with two factors each and the pivoting's copy, all float64."""
    square, wide = 8 * config.hidden**2, 8 * config.hidden * config.intermediate
    head = head_memory(config, recipe.calibration.length) if recipe.objective != "input" else 0
    return Memory(
        load=load,
        calibrate=max(head, backward_memory(config, recipe, layer)),
        factor=8 * square + 3 * 2 * square + 3 * 2 * wide + 2 * wide,
    )


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
