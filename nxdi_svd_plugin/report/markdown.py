"""report.md and its figures, made of one or several report.json and the rows of `nxdi-svd evaluate`.

Figures: perplexity and accuracy against ratio (the paper's Figures 6 and 7), output error of each layer, rank map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nxdi_svd_plugin.checkpoint.names import model_name, read_json
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report import figures
from nxdi_svd_plugin.report.cells import error_lines, layer_rows
from nxdi_svd_plugin.report.json_object import from_json
from nxdi_svd_plugin.report.measured import Evaluation, LayerLosses, Recovery, Row, Tasks
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.report.scaling import HEAD, rows, sums
from nxdi_svd_plugin.stored.projection import PROJECTIONS

MARKDOWN = "report.md"
QUALITY = "report-quality.png"
KINDS = {"rows": Tasks, "rank_correlation": LayerLosses, "perplexity": Evaluation}
"""What `nxdi-svd evaluate --json` prints, by a key that no other has."""


@dataclass(frozen=True)
class Entry:
    """One compressed model: its name, its report, and what was measured on it, recorded there or in other files."""

    name: str
    report: Report
    rows: Sequence[Row] = ()
    losses: LayerLosses | None = None

    @property
    def ratio(self) -> float:
        """Share of the MLP parameters that was saved."""
        return self.report.ratio.mlp

    @property
    def group(self) -> str:
        """How it was made: form and objective, and whether the factors were fitted again or trained."""
        recipe = self.report.recipe
        made = [str(recipe[key]) for key in ("form", "objective") if key in recipe]
        refitted, trained = self.report.refitted, self.report.trained
        return " ".join([*made, *(["refitted"] if refitted else []), *(["recovered"] if trained else [])])


def read_entry(directory: Path, evaluations: Iterable[Path] = ()) -> Entry:
    """Read report.json, with what `evaluate --record` put there, and files that `evaluate --json` printed.

    Raises:
        CheckpointError: no report.json, or files that are not what they should be.
    """
    report = Report.read(directory)
    rows = [*(report.evaluation.rows() if report.evaluation else []), *(report.tasks.rows if report.tasks else [])]
    losses = report.layer_losses
    for path in evaluations:
        found = read_measured(path)
        if isinstance(found, LayerLosses):
            losses = found
        else:
            rows += found.rows() if isinstance(found, Evaluation) else found.rows
    return Entry(model_name(directory), report, rows, losses)


def read_measured(path: Path) -> Evaluation | Tasks | LayerLosses:
    """One file that `evaluate --json` printed, of both models.

    Raises:
        CheckpointError: unreadable, something else, or of one model alone.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    kind = next((kind for key, kind in KINDS.items() if key in content), None)
    if kind is None or (kind is Evaluation and "base" not in content):
        raise CheckpointError(
            f"{path} has no pair of base and compressed; make it with `nxdi-svd evaluate --base ... --json`"
        )
    try:
        found: Evaluation | Tasks | LayerLosses = from_json(kind, content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; make it with `nxdi-svd evaluate --base ... --json`") from error
    return found


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
        figures.layers(entry.report.matrices, entry.name, files[-1])
        if entry.losses:
            files.append(output / losses_file(i, entries))
            figures.losses(entry.losses, entry.name, files[-1])
    (output / MARKDOWN).write_text(markdown(entries), encoding="utf-8")
    return [output / MARKDOWN, *files]


def before_recovery(entry: Entry) -> list[str]:
    """What the errors of a recovered model are."""
    return ["The output errors are those of the compression, before recovery.", ""] if entry.report.recovery else []


def layers_file(index: int, entries: Sequence[Entry]) -> str:
    """File name of a model's own figure."""
    return "report-layers.png" if len(entries) == 1 else f"report-layers-{index + 1}.png"


def losses_file(index: int, entries: Sequence[Entry]) -> str:
    """File name of a model's figure of predicted and measured losses."""
    return layers_file(index, entries).replace("layers", "losses")


def losses_lines(losses: LayerLosses, file: str) -> list[str]:
    """What came of predicting the loss of each layer."""
    rho = losses.rank_correlation
    kept = "not defined" if rho is None else f"{rho:.3f}"
    sums = f"predicted {sum(losses.predicted):.3g}, measured {sum(losses.measured):.3g} nats per token"
    text = f"{losses.tokens} tokens of {losses.text.name} in windows of {losses.window}, float32"
    return [
        "",
        f"Each layer compressed alone: rank correlation (Spearman) of predicted and measured loss {kept}; sums of all "
        f"layers: {sums}. Measured is KL(dense || compressed) on {text}.",
        "",
        f"![predicted and measured loss of each layer]({file})",
    ]


def scaling_lines(report: Report) -> list[str]:
    """What the losses that decided were multiplied by, if they were."""
    if report.scaling is None:
        return []
    losses = report.scaling.losses(report.matrices)
    said = sums(report.scaling, losses)
    return ["", f"{said[0].upper()}{said[1:]}.", "", *table(HEAD, rows(report.scaling, losses))]


def markdown(entries: Sequence[Entry]) -> str:
    """The whole text."""
    source = entries[0].report.source.name
    parts = [f"# Compression of {source}", "", *table(MODEL_HEAD, map(model_row, entries))]
    parts += ["", provenance(entries[0].report)]
    if any(entry.rows for entry in entries):
        rows = (evaluation_row(entry, row) for entry in entries for row in entry.rows)
        parts += ["", "## Quality", "", f"![perplexity and accuracy against ratio]({QUALITY})", ""]
        parts += [*table(EVALUATION_HEAD, rows), "", RECOVERY_NOTE]
    recovered = [recovery_row(entry.name, entry.report.recovery) for entry in entries if entry.report.recovery]
    if recovered:
        parts += ["", "## Recovery", "", *table(RECOVERY_HEAD, recovered)]
    for i, entry in enumerate(entries):
        parts += [
            "",
            f"## Layers of {entry.name}",
            "",
            *before_recovery(entry),
            f"![output error and ranks]({layers_file(i, entries)})",
            "",
        ]
        parts += [LAYERS_NOTE, "", *table(("layer", "width", *PROJECTIONS), layer_rows(entry.report.matrices))]
        parts += scaling_lines(entry.report)
        parts += losses_lines(entry.losses, losses_file(i, entries)) if entry.losses else []
        parts += [line for text in error_lines(entry.report.matrices) for line in ("", f"{text[0].upper()}{text[1:]}.")]
    return "\n".join([*parts, ""])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


MODEL_HEAD = (
    "model",
    "ratio asked",
    "MLP",
    "whole model",
    "parameters (million)",
    "MLP of one core",
    "seconds",
    "peak memory (GiB)",
)


def model_row(entry: Entry) -> list[str]:
    """Sizes and costs of one model."""
    ratio, count, cost = entry.report.ratio, entry.report.parameters, entry.report.cost
    sizes = f"{count.model_dense / 1e6:.1f} → {count.model / 1e6:.1f}"
    reached = [f"{ratio.mlp:.4f}", f"{ratio.model:.4f}"]
    asked = f"{ratio.asked:.4f} of the {ratio.target}"
    return [
        entry.name,
        asked,
        *reached,
        sizes,
        entry.report.core,
        f"{cost.wall_seconds:.0f}",
        f"{cost.peak_bytes / 2**30:.2f}",
    ]


def provenance(report: Report) -> str:
    """One sentence on calibration and machine."""
    used, cost = report.calibration, report.cost
    return (
        f"Calibrated on {used.tokens} tokens of {used.text} (sha256 {used.sha256[:12]}, seed {used.seed}). "
        f"Run on {cost.device}, {cost.machine}; times and memory are of that run."
    )


EVALUATION_HEAD = ("model", "text or task", "metric", "base", "compressed", "recovery")
RECOVERY_NOTE = "Recovery is compressed / base, or base / compressed where lower is better: 1 is no loss."


def evaluation_row(entry: Entry, row: Row) -> list[str]:
    """One score of both models."""
    cells = [with_error(row.base, row.base_stderr), with_error(row.compressed, row.compressed_stderr)]
    return [entry.name, row.task, row.metric, *cells, "-" if row.recovery is None else f"{row.recovery:.3f}"]


def with_error(value: float, error: float | None) -> str:
    """A number with its standard error."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


RECOVERY_HEAD = ("model", "data", "loss", "method", "steps (best)", "validation perplexity", "kept", "seconds")


def recovery_row(name: str, record: Recovery) -> list[str]:
    """What recovery did to the model of this name."""
    change = f"{record.perplexity.input:.3f} → {record.perplexity.output:.3f}"
    kept = "input (no gain)" if record.kept_input else "trained"
    run = [record.data.text, record.loss, str(record.settings["method"]), f"{record.steps} ({record.best_step})"]
    return [name, *run, change, kept, f"{record.seconds:.0f}"]


LAYERS_NOTE = "Rank, and relative output error on the calibration tokens; after it what bfloat16 adds, where measured."
