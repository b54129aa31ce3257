"""nxdi-svd sample: text that a model writes itself, as training text for recover."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.cli.options import add_dtype_option, add_model_option, expanded, number, path, seed
from nxdi_svd_plugin.cli.output import emit

EPILOG = """\
examples:
  nxdi-svd sample --model DENSE --output own.jsonl --tokens 200000
  nxdi-svd sample --model smollm2 --output own.jsonl --start "<|endoftext|>" --prompts prompts.txt
  nxdi-svd recover --model OUT --data own.jsonl --teacher DENSE --output OUT2

One JSON line a document, written as they come: what a killed run has written is good, and shorter.
"""
NUMBERS = (
    ("tokens", int, "tokens to draw at least [65536]"),
    ("length", int, "tokens of a sequence [512]"),
    ("batch", int, "sequences at once [64]"),
    ("temperature", number, "of the softmax over all tokens [1.0]"),
    ("seed", seed, "of the sampling [0]"),
)


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("sample", help="let a model write its own training text", epilog=EPILOG)
    files = parser.add_argument_group("files")
    add_model_option(files, "model directory, as a rule the dense one")
    files.add_argument("--output", required=True, type=path, metavar="FILE", help="JSON lines to write")
    files.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_dtype_option(files)
    drawing = parser.add_argument_group("drawing (defaults in brackets)")
    drawing.add_argument("--start", metavar="TOKEN", help="what a document begins after [the BOS, else the EOS token]")
    drawing.add_argument(
        "--prompts", type=expanded, metavar="FILE", help="beginnings to go on from: a text's lines or records"
    )
    for name, kind, text in NUMBERS:
        drawing.add_argument(f"--{name}", type=kind, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Draw, write, and say how much it is."""
    result = sample(args)
    speed = result["tokens"] / max(result["seconds"], 1e-9)
    emit(args, result, f"{result['documents']} documents, {result['tokens']} tokens drawn, {speed:.0f} a second")
    return 0


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Write the file; what was drawn, as one JSON object.

    Raises:
        RecipeError: a setting out of range, an output that is there, a length that the model cannot take, no prompt.
        CheckpointError: a bad directory, a disk error. NotFiniteError: logits that are no numbers.
    """
    from nxdi_svd_plugin.allocator import keep_freed_blocks
    from nxdi_svd_plugin.checkpoint.atomic import disk_errors
    from nxdi_svd_plugin.errors import RecipeError
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
    from nxdi_svd_plugin.recover.sample import Settings, beginnings, check_length, documents, first_token
    from nxdi_svd_plugin.texts import read_text

    given = {name: getattr(args, name) for name, _, _ in NUMBERS}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    output: Path = args.output
    if output.exists() and not args.overwrite:
        raise RecipeError(f"{output} exists; give another --output or --overwrite")
    tokenizer = load_tokenizer(args.model)
    start = first_token(tokenizer, args.start)
    begun = beginnings(tokenizer, start, None if args.prompts is None else read_text(args.prompts))
    keep_freed_blocks()
    model = on_device(load_model(args.model, args.dtype))
    check_length(model, begun, settings)
    began, count, drawn = time.monotonic(), 0, 0
    with disk_errors(output), open(output, "w", encoding="utf-8") as file:
        for found in documents(model, tokenizer, begun, settings):
            file.writelines(json.dumps({"text": text}) + "\n" for text in found)
            file.flush()
            count, drawn = count + len(found), drawn + settings.length * settings.batch
    return {"model": args.model, "output": str(output), "documents": count, "tokens": drawn} | {
        "start": tokenizer.decode([start]),
        "seconds": time.monotonic() - began,
    }


def on_device(model: Any) -> Any:
    """The model on the GPU where there is one."""
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
