"""nxdi-svd inspect: format, ratio, and rank, bytes and error of every layer of a compressed directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin.cli.options import add_model_option
from nxdi_svd_plugin.cli.output import emit

if TYPE_CHECKING:
    from nxdi_svd_plugin.checkpoint.source import SourceConfig
    from nxdi_svd_plugin.report.record import Report
    from nxdi_svd_plugin.stored.layers import Layers

EPILOG = """\
examples:
  nxdi-svd inspect out/smollm2-r10
  nxdi-svd inspect out/smollm2-r10 --json

Reads config.json, report.json and the headers of the safetensors; no weight, which `nxdi-svd verify` does.
"""
ERRORS = ("relative_error", "bf16_error", "growth")


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("inspect", help="ranks, bytes and error of every layer", epilog=EPILOG)
    add_model_option(parser, "a compressed directory")


def run(args: argparse.Namespace) -> int:
    """Print what the directory holds."""
    found = inspect(Path(args.model))
    emit(args, found, to_text(found))
    return 0


def inspect(directory: Path) -> dict[str, Any]:
    """What the directory holds, as one JSON object.

    Raises:
        CheckpointError: not a compressed directory, or files that cannot be read.
    """
    from nxdi_svd_plugin.checkpoint.names import REPORT
    from nxdi_svd_plugin.checkpoint.source import read_compressed
    from nxdi_svd_plugin.report.json_object import from_json, to_json
    from nxdi_svd_plugin.report.record import Ratio, Report

    config, sizes = read_compressed(directory), tensor_sizes(directory)
    report = Report.read(directory) if (directory / REPORT).is_file() else None
    rows, groups = matrix_rows(config.layers, config.dense, sizes), config.svd_config["groups"]
    mlp_bytes = sum(row["bytes"] for row in rows)
    ratio, recovery = config.svd_config.get("ratio"), config.svd_config.get("recovery") or {}
    measured = {(m.layer, m.name): m for m in report.matrices} if report else {}
    for row in rows:
        row |= {key: getattr(measured.get((row["layer"], row["projection"])), key, None) for key in ERRORS}
    return {
        "model_type": config.dense.raw["model_type"],
        "format_version": config.svd_config["format_version"],
        "plugin_version": config.svd_config.get("plugin_version"),
        "groups": groups,
        "source": config.svd_config.get("source"),
        "ratio": ratio and to_json(from_json(Ratio, ratio, "svd_config.ratio")),
        "mlp_bytes": mlp_bytes,
        "mlp_bytes_per_core": mlp_bytes // groups,
        "model_bytes": sum(sizes.values()),
        "calibration": to_json(report.calibration) if report else None,
        "scaling": scaling_of(report) if report else None,
        "evaluation": report.evaluation.to_dict() if report and report.evaluation else None,
        "refitted": bool(report and report.refitted),
        "recovered": not recovery.get("kept_input", True),
        "matrices": rows,
    }


def scaling_of(report: Report) -> dict[str, Any] | None:
    """How predicted losses were brought to one scale, with predicted and scaled loss of every layer; None if they were
    not."""
    from nxdi_svd_plugin.report.json_object import to_json

    if report.scaling is None:
        return None
    losses = report.scaling.losses(report.matrices)
    layers = [{"layer": layer, "predicted": predicted, "scaled": scaled} for layer, predicted, scaled in losses]
    return {**to_json(report.scaling), "layers": layers}


def tensor_sizes(directory: Path) -> dict[str, int]:
    """Bytes of every tensor, from the headers of the files.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    from nxdi_svd_plugin.checkpoint.layout import tensor_bytes
    from nxdi_svd_plugin.checkpoint.reader import Reader

    return {name: tensor_bytes(info.dtype, info.shape) for name, info in Reader(directory).tensors.items()}


def matrix_rows(layers: Layers, dense: SourceConfig, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Form, rank and bytes of every projection, and the numbers that the dense model has in its place."""
    from nxdi_svd_plugin.checkpoint.names import projection_prefix
    from nxdi_svd_plugin.stored.projection import DENSE

    return [
        {
            "layer": i,
            "projection": name,
            "width": mlp.width,
            **projection.to_dict(),
            "bytes": sum(size for tensor, size in sizes.items() if tensor.startswith(projection_prefix(i, name))),
            "dense_parameters": DENSE.parameters(dense.hidden, dense.intermediate),
        }
        for i, mlp in layers.items()
        for name, projection in mlp.items()
    ]


def to_text(found: dict[str, Any]) -> str:
    """The table for a person."""
    from nxdi_svd_plugin.report.matrix import ADDED, percent

    lines = [f"{found['model_type']}, format {found['format_version']}, plugin {found['plugin_version']}"]
    if found["ratio"]:
        ratio = found["ratio"]
        lines.append(
            f"ratio asked {ratio['asked']} of the {ratio['target']}; reached {ratio['mlp']:.4f} of the MLP weights, "
            f"{ratio['model']:.4f} of the model"
        )
    core = f", {found['mlp_bytes_per_core']} on a core at tensor-parallel degree {found['groups']}"
    lines += [f"{found['mlp_bytes']} bytes of MLP weights in {found['model_bytes']} bytes{core}", ""]
    lines.append(
        f"{'layer':>5}  {'width':>5}  {'projection':<10}  {'form':<13}  {'rank':>5}  {'bytes':>12}  output error  "
        "in bf16  max C"
    )
    for row in found["matrices"]:
        error, rounding = percent(row["relative_error"], 2), percent(row["bf16_error"], 2)
        growth = "" if row["growth"] is None else f"{row['growth']:.2f}"
        lines.append(
            f"{row['layer']:>5}  {row['width']:>5}  {row['projection']:<10}  {row['form']:<13}  "
            f"{row.get('rank', ''):>5}  {row['bytes']:>12}  {error:>12}  {rounding:>7}  {growth:>5}".rstrip()
        )
    if found["groups"] > 1 and any(row["relative_error"] is not None for row in found["matrices"]):
        lines += ["", ADDED]
    if found["scaling"]:
        lines += ["", *scaling_text(found["scaling"])]
    if found["refitted"]:
        lines += ["", "the output errors are those before the refit"]
    if found["recovered"]:
        lines += ["", "the output errors are those of the compression, before recovery"]
    return "\n".join(lines)


def scaling_text(found: dict[str, Any]) -> list[str]:
    """The table of predicted, scaled and measured losses, and their sums."""
    from nxdi_svd_plugin.report.json_object import from_json
    from nxdi_svd_plugin.report.scaling import HEAD, Scaling, rows, sums

    losses = [(row["layer"], row["predicted"], row["scaled"]) for row in found["layers"]]
    scaling = from_json(Scaling, {key: value for key, value in found.items() if key != "layers"}, "scaling")
    table = [HEAD, *rows(scaling, losses)]
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:>{size}}" for cell, size in zip(row, sizes, strict=True)) for row in table]
    return [*(line.rstrip() for line in lines), sums(scaling, losses)]
