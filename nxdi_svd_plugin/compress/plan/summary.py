"""The plan of a compression as JSON and as text: ranks, bytes, ratios and peak memory before any weight is read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.checkpoint.names import model_name
from nxdi_svd_plugin.checkpoint.source import SourceConfig, read_config
from nxdi_svd_plugin.checkpoint.tensors import parameters
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.plan.budget import budget
from nxdi_svd_plugin.compress.plan.cost import (
    calibration_work,
    disk_needs,
    eigendecompositions,
    elimination_work,
    neurons_bytes,
    peak_memory,
    refit_bytes,
    refit_work,
    scaling_work,
)
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks, larger, reached, stored_parameters
from nxdi_svd_plugin.compress.plan.widths import check_budget
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.layers import Layers, Mlp, layers_to_json
from nxdi_svd_plugin.stored.projection import PROJECTIONS, Dense, LowRank

FAR = 0.01
"""A reached ratio this far from the asked one is explained."""


def make_plan(model_dir: str | Path, recipe: Recipe) -> dict[str, Any]:
    """Everything that config.json and a recipe determine.

    Raises:
        SvdError: an unusable config, or a recipe that does not fit the model.
    """
    config = read_config(model_dir)
    layers = decide_ranks(config, recipe)
    check_budget(config, recipe)
    kept = budget(config, recipe) if recipe.allocation == "global" else stored_parameters(config, layers)
    ratios, total = reached(config, recipe, kept), parameters(config)
    stored = str(config.raw.get("dtype") or config.raw.get("torch_dtype") or "float32").removeprefix("torch.")
    size = DTYPES[stored].bytes if stored in DTYPES else DTYPES["float32"].bytes
    low_rank = DTYPES[recipe.dtype].bytes if recipe.dtype in DTYPES else size
    memory = peak_memory(config, recipe)
    return {
        "model": model_name(config.directory),
        "model_type": config.model_type,
        **layers_to_json(layers),
        "ratio": asdict(ratios),
        "parameters": {
            "mlp_dense": config.mlp_parameters,
            "mlp": kept,
            "model_dense": total,
            "model": total - config.mlp_parameters + kept,
            "mlp_per_layer": [mlp.parameters(config.hidden) for mlp in layers.values()],
        },
        "mlp_bytes_per_layer": [_bytes(config, mlp, size, low_rank) for mlp in layers.values()],
        "bytes": {
            "dense": total * size,
            "compressed": (total - config.mlp_parameters) * size + kept * low_rank,
            "mlp_per_core": kept * low_rank // recipe.tp_degree,
        },
        "peak_memory": {"bytes": memory.peak, **asdict(memory)},
        "calibration": _calibration(config, recipe, layers),
        "notes": [
            *filter(None, [larger(config, layers)]),
            *_notes(config, recipe, layers, ratios.mlp if ratios.target == "mlp" else ratios.model),
        ],
        "recipe": recipe.to_dict(),
    }


def _bytes(config: SourceConfig, mlp: Mlp, dense: int, low_rank: int) -> int:
    """Bytes of a layer's MLP, with those of one number in a dense weight and in a factor."""
    return sum(
        p.parameters(config.hidden, mlp.width) * (dense if isinstance(p, Dense) else low_rank) for _, p in mlp.items()
    )


def _calibration(config: SourceConfig, recipe: Recipe, layers: Layers) -> dict[str, int]:
    """Disk in bytes and work in floating-point operations of the calibration, and the work of the paper's recipe; the
    matrices that are decomposed after it."""
    tokens = recipe.calibration.samples * recipe.calibration.length
    disk, (count, side) = disk_needs(config, recipe, tokens), eigendecompositions(config, recipe, layers)
    return {
        "eigendecompositions": count,
        "eigendecomposition_side": side,
        "disk_hidden_states": disk.states,
        "disk_statistics": disk.spectra,
        "neurons_memory": neurons_bytes(Groups.of(config, recipe), recipe).eliminated,
        "elimination_flop": elimination_work(config, recipe),
        **({"scaling_flop": scaling_work(config, recipe)} if recipe.scale else {}),
        "refit_memory": refit_bytes(config, recipe),
        "refit_flop": refit_work(config, recipe, tokens) if recipe.refits else 0,
        "flop": calibration_work(config, recipe, tokens),
        "flop_paper": calibration_work(config, Recipe(), tokens),
    }


def _notes(config: SourceConfig, recipe: Recipe, layers: Layers, got: float) -> list[str]:
    """What a reader should know: ranks that come later, how far rounding to the block is from what was asked."""
    if recipe.drops:
        return [
            "ranks shown are Eq. 5's for all neurons; what stays of them and the ranks are chosen together, within the "
            "budget, once the losses are known (--no-drop keeps all neurons)"
        ]
    if recipe.allocation == "global":
        return [
            "ranks shown are Eq. 5's; allocation global chooses others, within the budget, once the losses are known"
        ]
    free = any(isinstance(p, LowRank) for mlp in layers.values() for _, p in mlp.items())
    if not free or abs(got - recipe.asked) < FAR:
        return []
    m, n = config.hidden, config.intermediate
    step = recipe.block * (m + n) / (m * n)
    return [
        f"one block of {recipe.block} is {100 * step:.1f} % of a {m} x {n} matrix, so ratio {recipe.asked:.4g} became "
        f"{got:.4g}; different ratios may round to the same ranks: a smaller block comes nearer"
    ]


def plan_text(plan: dict[str, Any]) -> str:
    """The plan for people: layers with the same ranks in one line."""
    ratio, count, size, work = plan["ratio"], plan["parameters"], plan["bytes"], plan["calibration"]
    lines = [
        *_layer_lines(plan),
        f"ratio asked {ratio['asked']:.4f} of the {ratio['target']}; reached {ratio['mlp']:.4f} of the MLP, "
        f"{ratio['model']:.4f} of the model",
        f"parameters {count['model_dense'] / 1e6:.1f} M -> {count['model'] / 1e6:.1f} M, "
        f"weights {size['dense'] / 1e9:.2f} GB -> {size['compressed'] / 1e9:.2f} GB",
        f"a core holds {size['mlp_per_core'] / 2**20:.1f} MiB of MLP weights at tensor-parallel degree "
        f"{plan['recipe']['tp_degree']}",
        f"peak memory of the compression about {plan['peak_memory']['bytes'] / 2**30:.1f} GiB (modelled)",
        f"calibration {work['flop'] / 1e12:.1f} TFLOP ({work['flop'] / work['flop_paper']:.1f} x the paper's recipe), "
        f"disk {(work['disk_hidden_states'] + work['disk_statistics']) / 1e9:.2f} GB while it runs "
        f"(statistics {work['disk_statistics'] / 1e9:.2f} GB)",
        f"{work['eigendecompositions']} eigendecompositions of {work['eigendecomposition_side']} x "
        f"{work['eigendecomposition_side']} matrices",
        *_elimination_lines(work),
        *_scaling_lines(plan),
        *_refit_lines(work),
        "the output error of each layer is known once the calibration text has run: report.json, `nxdi-svd inspect`",
        *plan["notes"],
    ]
    return "\n".join(lines)


def _elimination_lines(work: dict[str, int]) -> list[str]:
    if not work["neurons_memory"]:
        return []
    return [
        f"dropping neurons: {work['elimination_flop'] / 1e12:.1f} TFLOP in float32 or float64, "
        f"{work['neurons_memory'] / 2**30:.2f} GiB for the covariance of a layer's neurons and its root"
    ]


def _scaling_lines(plan: dict[str, Any]) -> list[str]:
    flop = plan["calibration"].get("scaling_flop")
    if flop is None:
        return []
    return [f"scaling losses on {plan['recipe']['scale']}: {flop / 1e12:.1f} TFLOP, every layer changed alone"]


def _refit_lines(work: dict[str, int]) -> list[str]:
    if not work["refit_memory"]:
        return []
    return [
        f"refit: at most {work['refit_flop'] / 1e12:.1f} TFLOP, {work['refit_memory'] / 2**30:.2f} GiB for a layer; "
        "hidden states and statistics stay on disk until it has passed them"
    ]


def _layer_lines(plan: dict[str, Any]) -> list[str]:
    lines = ["layers     " + "  ".join(f"{name:>10}" for name in (*PROJECTIONS, "MLP MB"))]
    previous, first = None, 0
    rows = [
        (*(str(layer[p].get("rank", layer[p]["form"])) for p in PROJECTIONS), f"{size / 1e6:.3f}")
        for layer, size in zip(plan["layers"].values(), plan["mlp_bytes_per_layer"], strict=True)
    ]
    for i, row in enumerate([*rows, None]):
        if row != previous:
            if previous is not None:
                lines.append(f"{first:>3} to {i - 1:<3} " + "  ".join(f"{cell:>10}" for cell in previous))
            previous, first = row, i
    return lines
