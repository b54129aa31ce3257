"""Everything that is checked and decided before the first layer: one place, before any long work."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.layout import Entries, tensor_bytes
from nxdi_svd_plugin.checkpoint.names import layer_prefix, mlp_weights, projection_prefix
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import SourceConfig, read_config
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.samples import tokenize, warn_of_few, windows
from nxdi_svd_plugin.compress.plan.budget import check_patterns
from nxdi_svd_plugin.compress.plan.cost import disk_needs
from nxdi_svd_plugin.compress.plan.degenerate import survey, warn
from nxdi_svd_plugin.compress.plan.limits import Limits
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks, larger
from nxdi_svd_plugin.compress.plan.scaling import SAMPLES, window_length
from nxdi_svd_plugin.compress.plan.widths import check_budget
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError
from nxdi_svd_plugin.modeling.finite import check_ids
from nxdi_svd_plugin.recipe import Calibration, Recipe
from nxdi_svd_plugin.stored.layers import FORMAT_VERSION, Layers, Mlp
from nxdi_svd_plugin.stored.projection import Dense
from nxdi_svd_plugin.texts import Text, read_text
from nxdi_svd_plugin.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """The text that losses are measured on, and token ids [samples, length] of it."""

    text: Text
    samples: torch.Tensor


@dataclass(frozen=True)
class Job:
    """A checked compression: source, recipe, ranks and calibration samples.

    limits: of the weights' ranks (plan/degenerate.py). samples: token ids [samples, length]. scale: where the recipe
    brings losses to one scale.
    """

    config: SourceConfig
    reader: Reader
    recipe: Recipe
    layers: Layers
    limits: Limits
    text: Text
    samples: torch.Tensor
    scale: Scale | None = None


def prepare(model_dir: Path, recipe: Recipe) -> Job:
    """Check source, recipe and calibration text against each other; reads every weight once.

    Raises:
        SvdError: whatever is wrong with them.
    """
    config = read_config(model_dir)
    if warning := larger(config, decide_ranks(config, recipe)):
        logger.warning("%s", warning)
    check_budget(config, recipe)
    reader = Reader(config.directory)
    reader.check_tensors(config)
    carried(config.directory)  # what the last step copies must be readable now
    _check_length(config, recipe)
    text = read_text(recipe.calibration.text)
    samples = windows(tokenize(config.directory, text, recipe.calibration), recipe.calibration)
    scale = _scale(config, recipe, text)
    for ids in (samples, *([scale.samples] if scale else [])):
        check_ids(config.directory, config.raw["vocab_size"], ids)
    warn_of_few(config, samples)
    limits = survey(reader, config, Groups.of(config, recipe))
    warn(limits)
    check_budget(config, recipe, limits)
    check_patterns(config, recipe, limits)
    return Job(config, reader, recipe, decide_ranks(config, recipe, limits), limits, text, samples, scale)


def _scale(config: SourceConfig, recipe: Recipe, calibration: Text) -> Scale | None:
    """The text that losses are measured on: another than the calibration's, by its bytes."""
    if recipe.scale is None:
        return None
    text = read_text(recipe.scale)
    if text.sha256 == calibration.sha256:
        raise CalibrationError(
            f"scale {recipe.scale} is the calibration text, on which predicted losses are too small; give another text"
        )
    wanted = Calibration(recipe.scale, SAMPLES, window_length(recipe), recipe.calibration.seed)
    ids = tokenize(config.directory, text, wanted)
    if len(ids) < (need := wanted.samples * wanted.length):
        raise CalibrationError(
            f"scale {recipe.scale} has {len(ids)} tokens; losses are measured on {need}: give a longer text"
        )
    return Scale(text, windows(ids, wanted))


def _check_length(config: SourceConfig, recipe: Recipe) -> None:
    length = recipe.calibration.length
    longest = config.raw.get("max_position_embeddings", length)
    if config.raw.get("use_sliding_window"):
        longest = min(longest, config.raw.get("sliding_window") or longest)
    if length > longest:
        raise CalibrationError(
            f"calibration length {length} is more than the model's {longest} positions (or its sliding window); "
            "use shorter samples"
        )


def entries(job: Job, layers: Layers) -> Entries:
    """Name, dtype and shape of every tensor of the output, layer by layer, the rest first."""
    result = {}
    replaced = {name for layer in layers for _, name in mlp_weights(layer)}
    for name, info in sorted(job.reader.tensors.items(), key=lambda item: _natural(item[0])):
        if name not in replaced:
            result[name] = (info.dtype, info.shape)
    for layer, mlp in layers.items():
        for tensor, shape in mlp.tensors(job.config.hidden).items():
            dtype = stored_dtype(job, layer, tensor.split(".")[0], mlp)
            result[f"{layer_prefix(layer)}mlp.{tensor}"] = (dtype, shape)
    return dict(sorted(result.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: numbers by value; everything outside the layers before them."""
    inside = name.startswith("model.layers.")
    return [(inside, 0, ""), *((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("."))]


def stored_dtype(job: Job, layer: int, projection: str, mlp: Mlp) -> torch.dtype:
    """dtype of a projection's tensors in the output."""
    stored = job.reader.tensors[projection_prefix(layer, projection) + "weight"].dtype
    if isinstance(mlp[projection], Dense) or job.recipe.dtype == "source":
        return stored
    dtype: torch.dtype = getattr(torch, job.recipe.dtype)
    return dtype


def check_space(job: Job, output: Path, processes: int) -> None:
    """Refuse an output disk that is too small for the result and the working files.

    Raises:
        CheckpointError: says what is needed and what is free.
    """
    disk = disk_needs(job.config, job.recipe, job.samples.numel(), processes)
    weights = sum(tensor_bytes(*entry) for entry in entries(job, job.layers).values())
    # the paper's one pass and a refit write the result while states are there; the others when these are gone
    together = job.recipe.is_paper or job.recipe.refits
    needs = disk.spectra + (disk.states + weights if together else max(disk.states, weights))
    existing = output.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needs > free:
        raise CheckpointError(
            f"{output} needs {needs / 1e9:.2f} GB (statistics {disk.spectra / 1e9:.2f}, hidden states "
            f"{disk.states / 1e9:.2f} and the result {weights / 1e9:.2f}), {free / 1e9:.2f} GB are free; free some "
            "space, choose another disk, or use fewer calibration tokens or `recipe: paper`"
        )


def identity(job: Job, processes: int, device: torch.device) -> dict[str, Any]:
    """Everything that decides the bytes of the result. The source comes by content, so it may have moved."""
    return {
        "source": job.reader.fingerprint(),
        "recipe": job.recipe.to_dict(),
        "calibration text": job.text.sha256,
        "samples": [list(job.samples.shape), hashlib.sha256(job.samples.numpy().tobytes()).hexdigest()],
        **({"scale text": job.scale.text.sha256} if job.scale else {}),
        "format": FORMAT_VERSION,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device.type,
    }


def versions() -> dict[str, str]:
    """Versions that the result depends on."""
    return {
        "nxdi_svd_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine() -> str:
    """Processor and core count, for the report."""
    return f"{platform.machine()}, {os.cpu_count()} cores"
