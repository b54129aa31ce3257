"""Task accuracy with lm-eval: base and compressed by the same tasks and settings, always as a pair.

The models are loaded by this package and given to lm-eval as an object, so its own model registry is not used.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from nxdi_svd_plugin.checkpoint.partner import check_partner
from nxdi_svd_plugin.errors import CalibrationError, RecipeError
from nxdi_svd_plugin.modeling.finite import finite_logits
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.report.measured import Row, Tasks
from nxdi_svd_plugin.versions import import_extra

logger = logging.getLogger(__name__)
PAPER_TASKS = (
    *("wikitext", "ptb", "c4"),
    *("openbookqa", "arc_easy", "arc_challenge", "winogrande", "hellaswag", "piqa", "mathqa"),
)
SHIPPED = Path(__file__).parent / "tasks"  # definitions that lm-eval 0.4 lacks
LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Options:
    """tasks: lm-eval names, "paper" for PAPER_TASKS. limit: first documents of each task, 0 for all.

    include_path: a folder of further task YAML files. task_data: a folder of TASK.jsonl files that are read instead of
    the hub's data set, in its columns. fewshot: examples in the prompt. batch: sequences at once.
    """

    tasks: Sequence[str]
    limit: int = 0
    include_path: Path | None = None
    task_data: Path | None = None
    fewshot: int = 0
    batch: int = 1


def evaluate_pair(base: Path, compressed: Path, options: Options, dtype: torch.dtype | str = "auto") -> Tasks:
    """Run the tasks on both models.

    Raises:
        MissingExtraError: lm-eval is not installed. RecipeError: an unknown task. CalibrationError: data that cannot be
        loaded. CheckpointError: a model that cannot, or two of different models.
    """
    import_extra("lm_eval", "eval")
    with tempfile.TemporaryDirectory() as scratch:
        specs = task_specs(options, Path(scratch))
        check_partner(compressed, base)
        sides = [run_tasks(directory, specs, options, dtype) for directory in (base, compressed)]
    settings = {"limit": options.limit or None, "fewshot": options.fewshot, "dtype": str(dtype), "batch": options.batch}
    settings["lm_eval"] = import_extra("lm_eval", "eval").__version__
    return Tasks(tuple(pair_rows(*sides)), settings)


@functools.lru_cache(maxsize=2)
def task_manager(include_path: Path | None) -> Any:
    """lm-eval's tasks, those shipped here and those of `include_path`; reading them takes seconds."""
    paths = [SHIPPED] + ([] if include_path is None else [include_path])
    return import_extra("lm_eval.tasks", "eval").TaskManager(include_path=[str(path) for path in paths])


def task_specs(options: Options, scratch: Path) -> list[str]:
    """What lm-eval is asked to run: names, or task files in `scratch` that read local data.

    Raises:
        RecipeError: an unknown name, a folder that is none. CalibrationError: no local file for a task.
    """
    for folder in (options.include_path, options.task_data):
        if folder is not None and not folder.is_dir():
            raise RecipeError(f"{folder} is not a directory; give the folder of the task files")
    names = [name for task in options.tasks for name in (PAPER_TASKS if task == "paper" else (task,))]
    known = task_manager(options.include_path).all_tasks
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise RecipeError(f"unknown task {name!r}{'; did you mean ' + ' or '.join(close) + '?' if close else ''}")
    if options.task_data is None:
        return names
    return [local_task(name, options, options.task_data, scratch) for name in names]


def local_task(name: str, options: Options, folder: Path, scratch: Path) -> str:
    """A task file that includes the definition of `name` and reads `folder`/`name`.jsonl for every split."""
    file = folder / f"{name}.jsonl"
    if not file.is_file():
        raise CalibrationError(f"task {name} needs {file}: JSON lines with the columns of its data set")
    origin = task_manager(options.include_path).task_index[name].yaml_path
    if origin is None:
        raise RecipeError(f"{name} is a group of tasks: name its tasks one by one with --task-data")
    data = {split: str(file.resolve()) for split in SPLITS}
    task = {
        "include": str(origin),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data},
    }
    target = scratch / f"{name}.yaml"
    target.write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(target)


def language_model(directory: Path, dtype: torch.dtype | str, batch: int) -> Any:
    """A dense or compressed directory as an lm-eval LM object, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(directory, dtype).to(device).eval()  # type: ignore[arg-type]
    lm = import_extra("lm_eval.models.huggingface", "eval").HFLM
    return lm(pretrained=model, tokenizer=load_tokenizer(directory), batch_size=batch)


def run_tasks(directory: Path, specs: list[str], options: Options, dtype: torch.dtype | str) -> dict[str, Any]:
    """lm-eval's result object of one model, with standard errors of perplexities, which lm-eval does not compute.

    Raises:
        CalibrationError: a data set cannot be loaded (no network, no such file). NotFiniteError: logits that are no
        numbers.
    """
    logger.info("lm-eval: %s", directory)
    evaluator = import_extra("lm_eval", "eval")
    lm = language_model(directory, dtype, options.batch)
    try:
        with finite_logits(lm.model):
            results: dict[str, Any] = evaluator.simple_evaluate(
                lm,
                tasks=specs,
                num_fewshot=options.fewshot,
                limit=options.limit or None,
                task_manager=task_manager(options.include_path),
                log_samples=True,
                bootstrap_iters=1000,
            )
    except OSError as error:
        raise CalibrationError(
            f"a task's data cannot be loaded ({error}); without a network give --task-data DIR with TASK.jsonl files"
        ) from error
    for task, samples in results.get("samples", {}).items():
        add_rolling_errors(results["results"][task], samples)
    return results


def add_rolling_errors(scores: dict[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Put the standard error of every rolling metric beside it; lm-eval says "N/A" there."""
    for key in list(scores):
        metric, _, selection = key.partition(",")
        if metric in ROLLING:
            pairs = [sample[metric] for sample in samples if sample["filter"] == selection]
            scores[f"{metric}_stderr,{selection}"] = rolling_error(metric, pairs)


def rolling_error(metric: str, pairs: Sequence[tuple[float, float]]) -> float | None:
    """Standard error over documents of a metric of the ratio m = -sum(log likelihood) / sum(units); None below two.

    The ratio estimator's: se(m) = sqrt(n / (n - 1) sum (l_i + m w_i)^2) / sum w, then exp(m) se(m), or se(m) / ln 2.

    Args:
        pairs: (log likelihood, words or bytes) of every document.
    """
    n, units = len(pairs), sum(count for _, count in pairs)
    if n < 2 or not units:
        return None
    mean = -sum(likelihood for likelihood, _ in pairs) / units
    spread = sum((likelihood + mean * count) ** 2 for likelihood, count in pairs)
    error = math.sqrt(n / (n - 1) * spread) / units
    return error / math.log(2) if metric == "bits_per_byte" else math.exp(min(mean, 700.0)) * error


def pair_rows(base: Mapping[str, Any], compressed: Mapping[str, Any]) -> list[Row]:
    """One row for each task and metric that both results have."""
    rows = []
    for task, scores in base["results"].items():
        other = compressed["results"][task]
        for key, score in scores.items():
            metric, _, selection = key.partition(",")
            if not selection or metric.endswith("_stderr") or not isinstance(score, (int, float)):
                continue
            error = f"{metric}_stderr,{selection}"
            row = Row(
                task=task,
                metric=metric,
                samples=base["n-samples"][task]["effective"],
                base=float(score),
                base_stderr=number(scores.get(error)),
                compressed=float(other[key]),
                compressed_stderr=number(other.get(error)),
                recovery=recovery(metric, float(score), float(other[key])),
            )
            rows.append(row)
    return rows


def recovery(metric: str, base: float, compressed: float) -> float | None:
    """Share of the base score that is kept: compressed / base, or base / compressed where lower is better."""
    above, below = (base, compressed) if metric.endswith(LOWER_IS_BETTER) else (compressed, base)
    return above / below if below else None


def number(value: Any) -> float | None:
    """A standard error, or None where lm-eval has none ("N/A")."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def to_text(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    head = f"{'task':<16}{'metric':<18}{'base':>22}{'compressed':>24}{'recovery':>10}"
    lines = [head]
    for row in rows:
        cells = f"{score(row.base, row.base_stderr):>22}{score(row.compressed, row.compressed_stderr):>24}"
        kept = "-" if row.recovery is None else f"{row.recovery:.3f}"
        lines.append(f"{row.task:<16}{row.metric:<18}{cells}{kept:>10}")
    return "\n".join(lines)


def score(value: float, error: float | None) -> str:
    """A score with its standard error."""
    shown = [f"{item:.4f}" if abs(item) < 1e4 else f"{item:.4g}" for item in (value, error) if item is not None]
    return " ± ".join(shown)
