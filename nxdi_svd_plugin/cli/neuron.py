"""nxdi-svd neuron run: NxD Inference's inference_demo with --mlp-impl."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi_svd_plugin.cli.output import emit

EPILOG = """\
examples:
  nxdi-svd neuron run --model-path compressed/ --compiled-model-path compiled/ --mlp-impl svd_fused --tp-degree 2 \\
      --batch-size 1 --seq-len 640 --max-context-length 512 --prompt "Hello" --benchmark
  nxdi-svd neuron run --model-path compressed/ --compiled-model-path compiled/ --mlp-impl svd --on-cpu \\
      --check-accuracy-mode token-matching --torch-dtype float32 --prompt "Hello"

Everything after `run` goes to NxDI's inference_demo; its own help is `nxdi-svd neuron run --help`. --model-type and
--task-type may be left out: they come from config.json. Needs the Neuron SDK (NxDI 0.6 to 0.9); see docs/nxdi.md.
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser; what follows `run` is not parsed here."""
    parser = subparsers.add_parser("neuron", help="run a compressed model with NxD Inference", epilog=EPILOG)
    parser.add_argument("action", choices=["run"], help="run: compile, load, check, generate, benchmark")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="inference_demo's arguments and --mlp-impl")


def run(args: argparse.Namespace) -> int:
    """Hand the arguments to the runner."""
    from nxdi_svd_plugin.nxdi import runner

    runner.run(args.arguments)
    emit(args, {"ran": args.arguments}, "")
    return 0
