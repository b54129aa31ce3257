"""Completing a compressed directory: config, carried files, report."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.names import CONFIG, REPORT, model_name
from nxdi_svd_plugin.checkpoint.tensors import parameters
from nxdi_svd_plugin.checkpoint.writer import Writer, remove_unfinished
from nxdi_svd_plugin.compress.plan.ranks import reached
from nxdi_svd_plugin.compress.run.job import Job, Scale, machine, versions
from nxdi_svd_plugin.compress.run.manifest import Manifest
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.card import model_card
from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.peak import peak_memory
from nxdi_svd_plugin.report.record import Calibration, Cost, Parameters, Report, Source
from nxdi_svd_plugin.report.scaling import Scaling, Trial
from nxdi_svd_plugin.report.source_card import CARD, read_card
from nxdi_svd_plugin.stored.layers import ARCHITECTURES, FORMAT_VERSION, MODEL_TYPES, layers_to_json
from nxdi_svd_plugin.version import __version__

logger = logging.getLogger(__name__)


def finish(job: Job, writer: Writer, state: Manifest, device: torch.device) -> Report:
    """Write everything but the weights, `config.json` last, and return the report.

    Raises:
        CheckpointError: the shards do not hold what was written.
    """
    files = writer.hashes(state.tensors)
    report = make_report(job, state, files, device)
    beside = carried(job.config.directory)
    beside[REPORT] = report.to_bytes()
    config = compressed_config(job, report)
    beside[CARD] = model_card(report, config, read_card(job.config.directory)).encode()
    writer.finish(beside, config)
    return report


def completed(job: Job, output: Path) -> Report | None:
    """The report of an output that was complete when its run was killed; None if it is not complete.

    Raises:
        CheckpointError: it was made from another source, recipe or calibration text.
    """
    if not (output / CONFIG).is_file() or not (output / REPORT).is_file():
        return None
    try:
        report = Report.read(output)
    except CheckpointError:
        return None
    made = (
        report.source.fingerprint,
        report.recipe,
        report.calibration.sha256,
        report.scaling and report.scaling.sha256,
    )
    now = (job.reader.fingerprint(), job.recipe.to_dict(), job.text.sha256, job.scale and job.scale.text.sha256)
    inputs = ("source", "recipe", "calibration text", "scale text")
    changed = [what for what, a, b in zip(inputs, made, now, strict=True) if a != b]
    if changed:
        raise CheckpointError(
            f"{output} is complete, and the {', '.join(changed)} changed since; there is nothing to resume: use "
            "--overwrite or another directory"
        )
    remove_unfinished(output)
    logger.info("%s is complete already; nothing was left to do", output)
    return report


def compressed_config(job: Job, report: Report) -> dict[str, Any]:
    """The source's config.json with the changes of docs/format.md."""
    config = job.config
    return {
        **config.raw,
        "model_type": MODEL_TYPES[config.model_type],
        "architectures": [ARCHITECTURES[config.model_type]],
        "svd_config": {
            "format_version": FORMAT_VERSION,
            "plugin_version": __version__,
            **layers_to_json(report.layers),
            "ratio": dataclasses.asdict(report.ratio),
            "source": dataclasses.asdict(report.source),
            "recipe": report.recipe,
            "versions": report.versions,
        },
    }


def scaling(measured_on: Scale | None, state: Manifest) -> Scaling | None:
    """How losses were brought to one scale, if they were."""
    if measured_on is None:
        return None
    text, (samples, length) = measured_on.text, measured_on.samples.shape
    trials = tuple(Trial(**trial) for trial in state.trials)
    return Scaling(text.name, text.sha256, samples, length, samples * length, trials)


def make_report(job: Job, state: Manifest, files: dict[str, str], device: torch.device) -> Report:
    """The report of a finished layer loop."""
    config, calibration = job.config, job.recipe.calibration
    matrices = tuple(MatrixRecord.from_dict(record, job.recipe.tp_degree) for record in state.records)
    kept = sum(record.projection.parameters(config.hidden, record.width) for record in matrices)
    ratios, total = reached(config, job.recipe, kept), parameters(config)
    return Report(
        source=Source(model_name(config.directory), config.model_type, state.identity["source"]),
        ratio=ratios,
        parameters=Parameters(
            mlp_dense=config.mlp_parameters,
            mlp=kept,
            model_dense=total,
            model=total - config.mlp_parameters + kept,
        ),
        matrices=matrices,
        calibration=Calibration(
            text=job.text.name,
            sha256=job.text.sha256,
            samples=len(job.samples),
            length=calibration.length,
            tokens=job.samples.numel(),
            seed=calibration.seed,
        ),
        scaling=scaling(job.scale, state),
        recipe=job.recipe.to_dict(),
        versions=versions(),
        cost=Cost(
            wall_seconds=state.wall_seconds,
            cpu_seconds=state.cpu_seconds,
            peak_bytes=peak_memory(),
            machine=machine(),
            device=device.type,
            threads=torch.get_num_threads(),
            processes=state.identity["processes"],
        ),
        files=files,
    )
