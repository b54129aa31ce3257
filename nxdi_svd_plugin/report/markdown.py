"""report.md and its figures, made of one or several report.json and the rows of `nxdi-svd evaluate`.

Figures: perplexity and accuracy against ratio (the paper's Figures 6 and 7), output error of each layer, rank map.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report import figures
from nxdi_svd_plugin.report.record import rounding_lines
from nxdi_svd_plugin.stored.layers import PROJECTIONS

REPORT = "report.json"
MARKDOWN = "report.md"
QUALITY = "report-quality.png"
NEEDED = ("ratio", "parameters", "matrices", "calibration", "cost", "source")


@dataclass(frozen=True)
class Entry:
    """One compressed model: its name, its report.json and its evaluation rows.

    rows: {task, metric, base, compressed} and for tasks base_stderr, compressed_stderr, recovery; see `rows_of`.
    losses: predicted and measured loss of every layer, as `evaluate --layers` has them, or None.
    """

    name: str
    report: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    losses: Mapping[str, Any] | None = None

    @property
    def ratio(self) -> float:
        """Share of the MLP parameters that was saved."""
        return float(self.report["ratio"]["mlp"])

    @property
    def group(self) -> str:
        """How it was made: form and objective, and whether the factors were trained."""
        recipe = self.report.get("recipe", {})
        made = [str(recipe[key]) for key in ("form", "objective") if key in recipe]
        trained = not self.report.get("recovery", {}).get("kept_input", True)
        return " ".join([*made, *(["recovered"] if trained else [])])


def read_entry(directory: Path, evaluations: Iterable[Path] = ()) -> Entry:
    """Read report.json, with what `evaluate --record` put there, and files that `evaluate --json` printed.

    Raises:
        CheckpointError: no report.json, or files that are not what they should be.
    """
    report = read_object(directory / REPORT)
    missing = [key for key in NEEDED if key not in report]
    if missing:
        raise CheckpointError(f"{directory / REPORT} has no {', '.join(missing)}; compress again with this version")
    recorded = [report[key] for key in ("evaluation", "tasks") if {"base", "rows"} & set(report.get(key, ()))]
    rows = [row for payload in recorded for row in rows_of(payload, directory / REPORT)]
    losses = report.get("layer_losses")
    for path in evaluations:
        payload = read_object(path)
        if "rank_correlation" in payload:
            losses = payload
        else:
            rows += rows_of(payload, path)
    return Entry(directory.resolve().name, report, rows, losses)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: unreadable, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def rows_of(payload: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The rows of one evaluation, whose JSON has `rows` (tasks) or `base` beside `perplexity` (a text)."""
    if isinstance(payload.get("rows"), list):
        return list(payload["rows"])
    base, compressed = payload.get("base"), payload.get("perplexity")
    if isinstance(base, Mapping) and isinstance(compressed, (int, float)):
        before = float(base["perplexity"])
        text = payload.get("text", path.stem)
        name = text["name"] if isinstance(text, Mapping) else str(text)
        row = {"task": name, "metric": "perplexity", "window": payload.get("window")}
        return [row | {"base": before, "compressed": float(compressed), "recovery": before / float(compressed)}]
    raise CheckpointError(
        f"{path} has no pair of base and compressed; make it with `nxdi-svd evaluate --base ... --json`"
    )


def write_report(entries: Sequence[Entry], output: Path) -> list[Path]:
    """Write report.md and its figures into `output`, and return the files, report.md first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    output.mkdir(parents=True, exist_ok=True)
    entries = sorted(entries, key=lambda entry: entry.ratio)
    files = []
    if any(entry.rows for entry in entries):
        files.append(output / QUALITY)
        figures.quality(entries, files[0])
    for i, entry in enumerate(entries):
        files.append(output / layers_file(i, entries))
        figures.layers(entry.report["matrices"], entry.name, files[-1])
        if entry.losses:
            files.append(output / losses_file(i, entries))
            figures.losses(entry.losses, entry.name, files[-1])
    (output / MARKDOWN).write_text(markdown(entries), encoding="utf-8")
    return [output / MARKDOWN, *files]


def before_recovery(entry: Entry) -> list[str]:
    """What the errors of a recovered model are."""
    return (
        ["The output errors are those of the compression, before recovery.", ""] if "recovery" in entry.report else []
    )


def layers_file(index: int, entries: Sequence[Entry]) -> str:
    """File name of a model's own figure."""
    return "report-layers.png" if len(entries) == 1 else f"report-layers-{index + 1}.png"


def losses_file(index: int, entries: Sequence[Entry]) -> str:
    """File name of a model's figure of predicted and measured losses."""
    return layers_file(index, entries).replace("layers", "losses")


def losses_lines(losses: Mapping[str, Any], file: str) -> list[str]:
    """What came of predicting the loss of each layer."""
    rho = losses["rank_correlation"]
    kept = "not defined" if rho is None else f"{rho:.3f}"
    sums = f"predicted {sum(losses['predicted']):.3g}, measured {sum(losses['measured']):.3g} nats per token"
    text = f"{losses['tokens']} tokens of {losses['text']['name']} in windows of {losses['window']}, float32"
    return [
        "",
        f"Each layer compressed alone: rank correlation (Spearman) of predicted and measured loss {kept}; sums of all "
        f"layers: {sums}. Measured is KL(dense || compressed) on {text}.",
        "",
        f"![predicted and measured loss of each layer]({file})",
    ]


def markdown(entries: Sequence[Entry]) -> str:
    """The whole text."""
    source = entries[0].report["source"]["name"]
    parts = [f"# Compression of {source}", "", *table(MODEL_HEAD, map(model_row, entries))]
    parts += ["", provenance(entries[0].report)]
    if any(entry.rows for entry in entries):
        rows = (evaluation_row(entry, row) for entry in entries for row in entry.rows)
        parts += ["", "## Quality", "", f"![perplexity and accuracy against ratio]({QUALITY})", ""]
        parts += [*table(EVALUATION_HEAD, rows), "", RECOVERY_NOTE]
    recovered = [entry for entry in entries if "recovery" in entry.report]
    if recovered:
        parts += ["", "## Recovery", "", *table(RECOVERY_HEAD, map(recovery_row, recovered))]
    for i, entry in enumerate(entries):
        parts += [
            "",
            f"## Layers of {entry.name}",
            "",
            *before_recovery(entry),
            f"![output error and ranks]({layers_file(i, entries)})",
            "",
        ]
        parts += [LAYERS_NOTE, "", *table(("layer", *PROJECTIONS), layer_rows(entry.report["matrices"]))]
        parts += losses_lines(entry.losses, losses_file(i, entries)) if entry.losses else []
        parts += [
            line for text in rounding_lines(entry.report["matrices"]) for line in ("", f"{text[0].upper()}{text[1:]}.")
        ]
    return "\n".join([*parts, ""])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


MODEL_HEAD = ("model", "ratio asked", "MLP", "whole model", "parameters (million)", "seconds", "peak memory (GiB)")


def model_row(entry: Entry) -> list[str]:
    """Sizes and costs of one model."""
    ratio, count, cost = entry.report["ratio"], entry.report["parameters"], entry.report["cost"]
    sizes = f"{count['model_dense'] / 1e6:.1f} → {count['model'] / 1e6:.1f}"
    reached = [f"{ratio['mlp']:.4f}", f"{ratio['model']:.4f}"]
    asked = f"{ratio['asked']:.4f} of the {ratio['target']}"
    return [entry.name, asked, *reached, sizes, f"{cost['wall_seconds']:.0f}", f"{cost['peak_bytes'] / 2**30:.2f}"]


def provenance(report: Mapping[str, Any]) -> str:
    """One sentence on calibration and machine."""
    text, cost = report["calibration"], report["cost"]
    machine = f", {cost['machine']}" if "machine" in cost else ""
    return (
        f"Calibrated on {text['tokens']} tokens of {text['text']} (sha256 {text['sha256'][:12]}, seed {text['seed']}). "
        f"Run on {cost.get('device', 'cpu')}{machine}; times and memory are of that run."
    )


EVALUATION_HEAD = ("model", "text or task", "metric", "base", "compressed", "recovery")
RECOVERY_NOTE = "Recovery is compressed / base, or base / compressed where lower is better: 1 is no loss."


def evaluation_row(entry: Entry, row: Mapping[str, Any]) -> list[str]:
    """One score of both models."""
    cells = [with_error(row[side], row.get(f"{side}_stderr")) for side in ("base", "compressed")]
    kept = row.get("recovery")
    return [entry.name, str(row["task"]), str(row["metric"]), *cells, "-" if kept is None else f"{kept:.3f}"]


def with_error(value: float, error: float | None) -> str:
    """A number with its standard error."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


RECOVERY_HEAD = ("model", "data", "loss", "method", "steps (best)", "validation perplexity", "kept", "seconds")


def recovery_row(entry: Entry) -> list[str]:
    """What recovery did."""
    record = entry.report["recovery"]
    values, steps = record["perplexity"], record["history"][-1]["step"]
    change = f"{values['input']:.3f} → {values['output']:.3f}"
    kept = "input (no gain)" if record["kept_input"] else "trained"
    run = [record["data"]["text"], record["loss"], record["settings"]["method"], f"{steps} ({record['best_step']})"]
    return [entry.name, *run, change, kept, f"{record['seconds']:.0f}"]


LAYERS_NOTE = "Rank, and relative output error on the calibration tokens; after it what bfloat16 adds, where measured."


def layer_rows(matrices: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Form, rank and relative output error of each projection, one row a layer."""
    rows: dict[int, dict[str, str]] = {}
    for record in matrices:
        cell = "dense" if record["form"] == "dense" else f"{record['rank']}{error_text(record)}"
        rows.setdefault(record["layer"], {})[record["projection"]] = cell
    return [[str(i), *(cells.get(name, "") for name in PROJECTIONS)] for i, cells in sorted(rows.items())]


def error_text(record: Mapping[str, Any]) -> str:
    """The relative output error in brackets, and what bfloat16 adds, if they were measured."""
    errors = [record.get("relative_error"), record.get("bf16_error")]
    shown = [f"{100 * error:.1f} %" for error in errors if error is not None]
    return f" ({' + '.join(shown)})" if shown else ""
