"""nxdi-svd evaluate: perplexity on a local text, or lm-eval tasks, of a model and the dense one it came from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin.cli.options import add_dtype_option, add_model_option, expanded, not_negative, path, positive
from nxdi_svd_plugin.cli.output import emit

if TYPE_CHECKING:
    from nxdi_svd_plugin.report.measured import Evaluation, LayerLosses, Tasks

EPILOG = """\
examples:
  nxdi-svd evaluate --model out/smollm2-r10
  nxdi-svd evaluate --model out/smollm2-r10 --base models/smollm2 --text wiki.test.txt --window 2048
  nxdi-svd evaluate --model out/smollm2-r10 --base models/smollm2 --record --json
  nxdi-svd evaluate --model out/smollm2-r10 --base models/smollm2 --layers --record
  nxdi-svd evaluate --model out/smollm2-r10 --base models/smollm2 --tasks paper --task-data data/ --limit 200

Without --text: the part of Python's own documentation that compression never calibrates on.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("evaluate", help="perplexity, dense and compressed side by side", epilog=EPILOG)
    models = parser.add_argument_group("models")
    add_model_option(models, "model directory, compressed or dense")
    models.add_argument("--base", type=expanded, metavar="DIR", help="the dense model, measured on the same tokens")
    add_dtype_option(models)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text", type=expanded, default="builtin-heldout", metavar="FILE", help="text, see docs/inputs.md"
    )
    text.add_argument("--max-tokens", type=positive, metavar="N", help="use only the first N tokens (default: all)")
    text.add_argument(
        "--window", type=positive, metavar="N", help="tokens per window (default: 1024, at most its longest)"
    )
    text.add_argument("--stride", type=positive, metavar="N", help="tokens between windows (default: the window)")
    text.add_argument(
        "--layers",
        action="store_true",
        help="instead: each layer compressed alone, its loss against the predicted one (default: 2048 tokens, windows "
        "of 512; needs --base)",
    )
    tasks = parser.add_argument_group("tasks (lm-eval; needs --base and the extra eval)")
    tasks.add_argument("--tasks", metavar="A,B", help='lm-eval tasks, or "paper" for those of the paper')
    tasks.add_argument("--limit", type=positive, default=0, metavar="N", help="first N documents of each task")
    tasks.add_argument(
        "--fewshot", type=not_negative, default=0, metavar="N", help="examples in the prompt (default: 0)"
    )
    tasks.add_argument("--batch", type=positive, default=1, metavar="N", help="sequences at once (default: 1)")
    tasks.add_argument("--include-path", type=path, metavar="DIR", help="folder of further task YAML files")
    tasks.add_argument("--task-data", type=path, metavar="DIR", help="TASK.jsonl files instead of the hub's data sets")
    parser.add_argument("--record", action="store_true", help="write the result into DIR's report.json and model card")


def run(args: argparse.Namespace) -> int:
    """Measure, keep it if asked to, and print."""
    if args.record:
        from nxdi_svd_plugin.report.record import Report

        Report.read(Path(args.model))  # before the measuring
    measure = layers if args.layers else tasks if args.tasks is not None else perplexity
    found, text = measure(args)
    if args.record:
        from nxdi_svd_plugin.report.keep import keep

        keep(Path(args.model), found)
    emit(args, found.to_dict(), text)
    return 0


def tasks(args: argparse.Namespace) -> tuple[Tasks, str]:
    """lm-eval's scores of both models, and their table."""
    from nxdi_svd_plugin.errors import RecipeError
    from nxdi_svd_plugin.evaluate import harness

    if not args.base:
        raise RecipeError("--tasks measures base and compressed as a pair; give the dense model with --base")
    options = harness.Options(
        args.tasks.split(","), args.limit, args.include_path, args.task_data, args.fewshot, args.batch
    )
    found = harness.evaluate_pair(Path(args.base), Path(args.model), options, args.dtype)
    return found, harness.to_text(found.rows)


def layers(args: argparse.Namespace) -> tuple[LayerLosses, str]:
    """The measured loss of every layer alone beside its prediction."""
    from nxdi_svd_plugin.errors import RecipeError
    from nxdi_svd_plugin.evaluate import layer_loss
    from nxdi_svd_plugin.evaluate.perplexity import token_ids
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.report.measured import TextName
    from nxdi_svd_plugin.texts import read_text

    if not args.base:
        raise RecipeError("--layers compares with the dense model; give it with --base")
    if args.tasks or args.stride or args.dtype != "auto":
        raise RecipeError(
            "--layers measures in float32 and in windows without overlap; leave --tasks, --dtype and --stride out"
        )
    text, base, window = read_text(args.text), Path(args.base), args.window or layer_loss.WINDOW
    ids = token_ids(load_tokenizer(base), text, args.max_tokens or layer_loss.TOKENS)
    name = TextName(text.name, text.sha256)
    losses = layer_loss.measure_layers(base, Path(args.model), ids, window, name, progress=not args.quiet)
    return losses, layer_loss.to_text(losses)


def perplexity(args: argparse.Namespace) -> tuple[Evaluation, str]:
    """The model's perplexity on a text, the dense model's beside it with --base, and both for a person.

    Raises:
        CheckpointError: the two models do not read the text as the same tokens, or are not of one dense model.
        SvdError: a bad directory, text or option.
    """
    import torch

    from nxdi_svd_plugin.checkpoint.partner import check_partner
    from nxdi_svd_plugin.errors import CheckpointError
    from nxdi_svd_plugin.evaluate.perplexity import WINDOW, measure, token_ids
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.report.measured import Evaluation, Score, TextName
    from nxdi_svd_plugin.texts import read_text

    text = read_text(args.text)
    directories = [args.model, *([args.base] if args.base else [])]
    ids = [token_ids(load_tokenizer(directory), text, args.max_tokens) for directory in directories]
    if args.base and not torch.equal(*ids):
        raise CheckpointError(
            f"{args.model} and {args.base} split the text into different tokens; their perplexities cannot be compared"
        )
    if args.base:
        check_partner(Path(args.model), Path(args.base))
    window = args.window or min(WINDOW, *(longest_window(directory) for directory in directories))
    scores = []
    for directory in directories:  # one at a time: two models need not fit in memory together
        model = load_model(directory, args.dtype)
        found = measure(model, ids[0], window, args.stride, progress=not args.quiet)
        scores.append({"model": directory, **found.to_dict()})
        del model
    base = Score(**scores[1]) if args.base else None
    relative = scores[0]["perplexity"] / base.perplexity if base else None
    result = Evaluation(**scores[0], text=TextName(text.name, text.sha256), base=base, relative=relative)
    return result, to_text(result)


def longest_window(directory: str) -> int:
    """The positions of a model, as far as its config.json says."""
    from nxdi_svd_plugin.checkpoint.source import read_raw
    from nxdi_svd_plugin.evaluate.perplexity import WINDOW

    positions = read_raw(Path(directory)).get("max_position_embeddings")
    return positions if isinstance(positions, int) else WINDOW


def to_text(result: Evaluation) -> str:
    """The result for a person."""
    rows = [result, *([result.base] if result.base else [])]
    lines = [f"{row.perplexity:12.3f}  {row.model} ({row.dtype}, {row.seconds:.0f} s)" for row in rows]
    if result.relative is not None:
        lines.append(f"{result.relative:12.3f}  times the base")
    lines.append(
        f"perplexity on {result.tokens} tokens of {result.text.name}, window {result.window}, stride {result.stride}"
    )
    return "\n".join(lines)
