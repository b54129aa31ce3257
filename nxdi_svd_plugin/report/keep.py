"""What was measured on a compressed directory goes into its report.json and its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nxdi_svd_plugin.checkpoint.atomic import write_bytes
from nxdi_svd_plugin.checkpoint.source import read_raw
from nxdi_svd_plugin.report.card import model_card
from nxdi_svd_plugin.report.measured import Evaluation, LayerLosses, Tasks
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.report.source_card import CARD, read_card


def keep(directory: Path, measured: Evaluation | Tasks | LayerLosses) -> None:
    """Put it in the place of an earlier one of its kind.

    Raises:
        CheckpointError: no readable report.json or config.json.
    """
    report = Report.read(directory)
    if isinstance(measured, Evaluation):
        report = dataclasses.replace(report, evaluation=measured.by_name())
    elif isinstance(measured, Tasks):
        report = dataclasses.replace(report, tasks=measured)
    else:
        report = dataclasses.replace(report, layer_losses=measured)
    card = model_card(report, read_raw(directory), read_card(directory))
    report.write(directory)
    write_bytes(directory / CARD, card.encode())
