"""The input's directory with other factors; config.json, report.json and the card say what was done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.names import ORDER, REPORT, UNFINISHED
from nxdi_svd_plugin.checkpoint.reader import Reader, file_sha256
from nxdi_svd_plugin.checkpoint.source import read_raw
from nxdi_svd_plugin.checkpoint.writer import Writer
from nxdi_svd_plugin.recover.choose import coefficients
from nxdi_svd_plugin.report.card import model_card
from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.measured import Recovery
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.report.source_card import CARD, read_card

SHARD_SIZE = 5 * 10**9


def write(output: Path, reader: Reader, factors: Mapping[str, Tensor], report: Report, recovery: Recovery) -> None:
    """Write the complete output.

    Args:
        output: a directory from `prepare_output`. reader, report: of the input. factors: by tensor name.
    Raises:
        CheckpointError: no space, a disk error, values that are not finite.
    """
    entries = {name: (info.dtype, info.shape) for name, info in reader.tensors.items()}
    writer = Writer(output, entries, SHARD_SIZE)
    for name, (dtype, _) in entries.items():
        writer.write(name, factors[name].to(dtype) if name in factors else reader.get(name))
    writer.sync(entries)
    files = {shard.name: file_sha256(output / UNFINISHED / shard.name) for shard in writer.shards}
    source = reader.directory
    config = read_raw(source)
    config["svd_config"] = {**config["svd_config"], "recovery": recovery.summary()}
    made = recovered(report, recovery, factors, files)
    beside = carried(source)
    if (source / ORDER).is_file():
        beside[ORDER] = (source / ORDER).read_bytes()
    beside[REPORT] = made.to_bytes()
    beside[CARD] = model_card(made, config, read_card(source)).encode()
    writer.finish(beside, config)


def recovered(report: Report, recovery: Recovery, factors: Mapping[str, Tensor], files: dict[str, str]) -> Report:
    """The input's report without what was measured on it, and with what the recovery did."""
    matrices = report.matrices
    if not recovery.kept_input:
        limited = coefficients(report.layers)
        matrices = tuple(remeasured(record, factors, limited.get((record.layer, record.name))) for record in matrices)
    return dataclasses.replace(
        report,
        matrices=matrices,
        files=files,
        evaluation=None,
        tasks=None,
        layer_losses=None,
        recovery=recovery,
    )


def remeasured(record: MatrixRecord, factors: Mapping[str, Tensor], far: str | None) -> MatrixRecord:
    """The record with the growth of the new far matrix, and without what was measured on the old one."""
    growth = None if far is None else float(factors[far].detach().abs().max())
    return dataclasses.replace(record, bf16_error=None, limited=None, growth=growth)
