"""nxdi-svd inspect: format, ratio, and rank, bytes and error of every layer of a compressed directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.cli.output import emit

EPILOG = """\
examples:
  nxdi-svd inspect out/smollm2-r10
  nxdi-svd inspect out/smollm2-r10 --json

Reads config.json, report.json and the headers of the safetensors; no weight.
"""


ERRORS = ("relative_error", "bf16_error", "growth")


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("inspect", help="ranks, bytes and error of every layer", epilog=EPILOG)
    parser.add_argument("directory", metavar="DIR", help="a compressed directory")


def run(args: argparse.Namespace) -> int:
    """Print what the directory holds."""
    found = inspect(Path(args.directory))
    emit(args, found, to_text(found))
    return 0


def inspect(directory: Path) -> dict[str, Any]:
    """What the directory holds, as one JSON object.

    Raises:
        CheckpointError: not a compressed directory, or files that cannot be read.
    """
    from nxdi_svd_plugin.checkpoint.names import REPORT, projection_prefix, read_json
    from nxdi_svd_plugin.checkpoint.reader import Reader
    from nxdi_svd_plugin.checkpoint.verify import compressed_config
    from nxdi_svd_plugin.errors import CheckpointError
    from nxdi_svd_plugin.stored.layers import PROJECTIONS, parse_layers, projection_dims

    config = compressed_config(directory)
    svd_config, report = config["svd_config"], {}
    if (directory / REPORT).is_file():
        try:
            report = read_json(directory / REPORT)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory / REPORT} cannot be read ({error}); restore or delete it") from error
    records = {(m["layer"], m["projection"]): m for m in report.get("matrices", [])}
    sizes = {n: info.dtype.itemsize * product(info.shape) for n, info in Reader(directory).tensors.items()}
    rows = []
    for i, layer in parse_layers(svd_config, config["num_hidden_layers"]).items():
        for name in PROJECTIONS:
            prefix, projection = projection_prefix(i, name), layer[name]
            stored = {tensor: size for tensor, size in sizes.items() if tensor.startswith(prefix)}
            elements = product(projection_dims(name, config["hidden_size"], config["intermediate_size"]))
            rows.append(
                {
                    "layer": i,
                    "projection": name,
                    **projection.to_dict(),
                    "bytes": sum(stored.values()),
                    "dense_parameters": elements,
                    **{key: records.get((i, name), {}).get(key) for key in ERRORS},
                }
            )
    return {
        "model_type": config["model_type"],
        "format_version": svd_config["format_version"],
        "plugin_version": svd_config.get("plugin_version"),
        "source": svd_config.get("source"),
        "ratio": svd_config.get("ratio"),
        "mlp_bytes": sum(row["bytes"] for row in rows),
        "model_bytes": sum(sizes.values()),
        "calibration": report.get("calibration"),
        "evaluation": report.get("evaluation"),
        "recovered": not (svd_config.get("recovery") or {"kept_input": True})["kept_input"],
        "matrices": rows,
    }


def product(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    total = 1
    for length in shape:
        total *= length
    return total


def to_text(found: dict[str, Any]) -> str:
    """The table for a person."""
    lines = [f"{found['model_type']}, format {found['format_version']}, plugin {found['plugin_version']}"]
    if found["ratio"]:
        ratio = found["ratio"]
        lines.append(
            f"ratio asked {ratio['asked']} of the {ratio['target']}; reached {ratio['mlp']:.4f} of the MLP weights, "
            f"{ratio['model']:.4f} of the model"
        )
    lines += [f"{found['mlp_bytes']} bytes of MLP weights in {found['model_bytes']} bytes", ""]
    lines.append(
        f"{'layer':>5}  {'projection':<10}  {'form':<13}  {'rank':>5}  {'bytes':>12}  output error  in bf16  max C"
    )
    for row in found["matrices"]:
        errors = ["" if row[key] is None else f"{100 * row[key]:.2f} %" for key in ERRORS[:2]]
        growth = "" if row["growth"] is None else f"{row['growth']:.2f}"
        lines.append(
            f"{row['layer']:>5}  {row['projection']:<10}  {row['form']:<13}  {row.get('rank', ''):>5}  "
            f"{row['bytes']:>12}  {errors[0]:>12}  {errors[1]:>7}  {growth:>5}".rstrip()
        )
    if found["recovered"]:
        lines += ["", "the output errors are those of the compression, before recovery"]
    return "\n".join(lines)
