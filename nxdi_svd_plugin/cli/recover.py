"""nxdi-svd recover: LoRA on both factors, then an ordinary compressed directory again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin.cli.options import add_model_option, number, path, seed
from nxdi_svd_plugin.cli.output import emit

if TYPE_CHECKING:
    from nxdi_svd_plugin.report.measured import Recovery

EPILOG = """\
examples:
  nxdi-svd recover --model OUT --data alpaca.jsonl --output OUT2
  nxdi-svd recover --model OUT --data text.txt --validation other.txt --teacher DENSE --output OUT2
  nxdi-svd recover --model OUT --data text.txt --output OUT2 --resume

DATA is plain text, or JSON records with text, with instruction, input and output (yahma/alpaca-cleaned) or
with messages, as lines or as one array; .gz and .zst too (docs/inputs.md). Its first steps x batch windows
are used, more than once if there are fewer. A result that is worse than the input on the validation text is
thrown away: the output then holds the input's tensors, and says so.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("recover", help="regain accuracy by LoRA on the factors", epilog=EPILOG)
    files = parser.add_argument_group("files")
    add_model_option(files, "compressed directory")
    files.add_argument("--data", required=True, type=path, metavar="FILE", help="training text")
    files.add_argument("--output", required=True, type=path, metavar="DIR", help="compressed directory to write")
    files.add_argument("--validation", type=path, metavar="FILE", help="text to choose by (default: end of the data)")
    files.add_argument("--teacher", type=path, metavar="DIR", help="dense model to distil from (default: next token)")
    files.add_argument("--resume", action="store_true", help="continue a killed run with the same options")
    files.add_argument("--overwrite", action="store_true", help="replace what --output holds")
    training = parser.add_argument_group("training (defaults in brackets)")
    training.add_argument("--method", help="lora; full: every number of the factors; or layers: attention too [lora]")
    training.add_argument("--precision", help="auto, float32 or bfloat16 (mixed) [auto: bfloat16 where it is quick]")
    for name, kind, text in NUMBERS:
        training.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)


NUMBERS = (
    ("lora_rank", int, "rank of the adapters [64]"),
    ("lora_alpha", number, "the adapters are scaled by alpha / rank [64]"),
    ("steps", int, "optimizer steps [200]"),
    ("batch", int, "windows a step [4]"),
    ("micro_batch", int, "windows at once, for memory [2]"),
    ("window", int, "tokens a window [512]"),
    ("learning_rate", number, "peak rate [lora 1e-3, full 3e-4]"),
    ("evaluate_every", int, "steps between evaluations [25]"),
    ("patience", int, "evaluations without progress until it stops [8]"),
    ("validation_windows", int, "validation windows at most [16]"),
    ("seed", seed, "order of the windows and start of the adapters [0]"),
)


def run(args: argparse.Namespace) -> int:
    """Recover and print the perplexities."""
    from nxdi_svd_plugin.recover.recover import recover
    from nxdi_svd_plugin.recover.settings import Settings

    names = [name for name, _, _ in NUMBERS] + ["method", "precision"]
    settings = Settings(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})
    record = recover(
        Path(args.model),
        args.data,
        args.output,
        settings,
        validation=args.validation,
        teacher_dir=args.teacher,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    emit(args, record.to_dict(), to_text(record))
    return 0


def to_text(record: Recovery) -> str:
    """One line for a person."""
    change, best = record.perplexity, f"best of {record.steps} steps: {record.best_step}"
    return (
        f"validation perplexity {change.input:.3f} -> {change.output:.3f} "
        f"({'no gain: the input is kept' if record.kept_input else best}), "
        f"{record.seconds:.0f} s, {record.loss} loss"
    )
