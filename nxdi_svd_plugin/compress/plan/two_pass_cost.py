"""What a two-pass recipe needs beside the paper's: statistics, disk, memory, work, from config.json and recipe."""

from __future__ import annotations

import math

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.recipe import Recipe


def needed(recipe: Recipe) -> bool:
    """Whether a recipe is not the paper's one-pass one."""
    return (recipe.form, recipe.objective, recipe.allocation) != ("pair", "input", "uniform")


def statistics_shapes(config: SourceConfig, objective: str) -> dict[str, tuple[int, ...]]:
    """What is summed for one layer, by name.

    inputs: sum x x^T of what gate and up read; outputs: sum y y^T of what down writes.
    {gate,up}_gradients: sum (W^T g)(W^T g)^T with g the loss gradient at the projection's output, so W G W^T.
    down_gradients: sum g g^T at down's output, or its diagonal. *_squares: sums of squares on the intermediate side.
    """
    square, inner = (config.hidden, config.hidden), (config.intermediate,)
    shapes: dict[str, tuple[int, ...]] = {"inputs": square, "outputs": square}
    if objective == "input":
        return shapes
    shapes |= {"gate_squares": inner, "up_squares": inner, "down_squares": inner}
    if objective == "two_sided_diagonal":
        return shapes | {"down_gradients": (config.hidden,)}
    return shapes | {"down_gradients": square, "gate_gradients": square, "up_gradients": square}


def disk_needs(config: SourceConfig, recipe: Recipe, tokens: int) -> tuple[int, int]:
    """Bytes on disk while it runs: hidden states and gradients, statistics."""
    boundaries = config.layers + 3 if recipe.objective != "input" else 3
    shapes = statistics_shapes(config, recipe.objective)
    return 4 * tokens * config.hidden * boundaries, 8 * config.layers * sum(math.prod(s) for s in shapes.values())


def head_memory(config: SourceConfig, length: int) -> int:
    """Bytes for the loss gradient at the head: its weight as stored and in float32, logits and three copies."""
    vocab = int(config.raw["vocab_size"])
    return 8 * vocab * config.hidden + 4 * 4 * length * vocab


def backward_memory(config: SourceConfig, recipe: Recipe, layer: int) -> int:
    """Bytes for one layer forward and back: weights in float32, float64 sums, what autograd keeps of one sample.

    Args:
        layer: numbers in one decoder layer.
    """
    length, heads = recipe.calibration.length, int(config.raw["num_attention_heads"])
    sums = 8 * sum(math.prod(shape) for shape in statistics_shapes(config, recipe.objective).values())
    kept = 4 * length * (8 * config.intermediate + 24 * config.hidden) + 2 * 4 * heads * length * length
    return 4 * layer + 8 * config.hidden * config.intermediate + sums + kept


def calibration_work(config: SourceConfig, recipe: Recipe, layer: int, tokens: int) -> int:
    """Floating-point operations of the calibration: 2 a weight and token forward, 2 more forward and 2 back for the
    gradient (activations only), the head, and the sums."""
    hidden, intermediate = config.hidden, config.intermediate
    forward = 2 * tokens * layer * config.layers
    if recipe.objective == "input":
        return forward + 2 * 2 * tokens * hidden * hidden * config.layers
    squares = 5 if recipe.objective == "two_sided" else 2
    projected = 2 * 2 * hidden * intermediate if recipe.objective == "two_sided" else 0
    sums = tokens * config.layers * (squares * 2 * hidden * hidden + projected)
    return 3 * forward + 4 * tokens * hidden * int(config.raw["vocab_size"]) + sums
