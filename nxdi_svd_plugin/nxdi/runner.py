"""NxDI's inference_demo with `--mlp-impl` and the plugin's models; all its other arguments are its own.

    nxdi-svd neuron run --model-path DIR --compiled-model-path DIR --mlp-impl svd_fused --tp-degree 2 --prompt "..."
    python -m nxdi_svd_plugin.nxdi.runner run ...        the same, for nxdi_distributed_launcher

`--model-type` and `--task-type`, which inference_demo wants before `run`, may stand anywhere and may be left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi import upstream
from nxdi_svd_plugin.nxdi.mlp_impl import MLP_IMPLS
from nxdi_svd_plugin.nxdi.registration import register
from nxdi_svd_plugin.stored.layers import MODEL_TYPES

PROGRAM = "inference_demo"


def run(arguments: Sequence[str]) -> None:
    """Run inference_demo's `main` with these arguments; it exits with SystemExit(2) on wrong ones.

    Raises:
        MissingExtraError, NxdiError: no NxDI, or an unsupported one; whatever the run itself raises.
    """
    upstream.sdk()
    register()
    command = command_line(arguments)
    demo = import_module("neuronx_distributed_inference.inference_demo")
    with with_mlp_impl(demo), with_argv([PROGRAM, *command]):
        demo.main()


def command_line(arguments: Sequence[str]) -> list[str]:
    """inference_demo's command line, `--model-type T --task-type K run ...`; T is config.json's where not given."""
    options = argparse.ArgumentParser(prog="nxdi-svd neuron run", add_help=False, allow_abbrev=False)
    options.add_argument("--model-type")
    options.add_argument("--task-type", default="causal-lm")
    known, rest = options.parse_known_args(list(arguments))
    rest = rest[1:] if rest[:1] == ["run"] else rest
    model_type = known.model_type or model_type_of(rest)
    return ["--model-type", model_type, "--task-type", known.task_type, "run", *rest]


def model_type_of(arguments: Sequence[str]) -> str:
    """`model_type` of the config.json in --model-path; any known one where there is no path to read (--help).

    Raises:
        NxdiError: no readable config.json, or a dense one that stock NxDI would misread.
    """
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--model-path")
    path = options.parse_known_args(list(arguments))[0].model_path
    if path is None:
        return "svd_llama"
    try:
        config = json.loads((Path(path) / "config.json").read_text())
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise NxdiError(
            f"--model-path {path} has no readable config.json with a model_type ({error}); give a local model "
            "directory, or --model-type"
        ) from error
    if model_type in MODEL_TYPES and "rope_parameters" in config and "rope_theta" not in config:
        raise NxdiError(
            f"{path}/config.json was written by transformers 5 (rope_parameters, no rope_theta), and NxDI's "
            "transformers 4 would run the model with RoPE base 10000; save it with transformers 4"
        )
    return model_type


@contextmanager
def with_mlp_impl(demo: Any) -> Iterator[None]:
    """Let `run` know --mlp-impl; inference_demo looks `setup_run_parser` up when it parses."""
    original = demo.setup_run_parser

    def setup_run_parser(run_parser: argparse.ArgumentParser) -> None:
        original(run_parser)
        run_parser.add_argument(
            "--mlp-impl",
            choices=list(MLP_IMPLS),
            help="the MLP: NxDI's own (default), low-rank in XLA ops, or low-rank in fused NKI kernels",
        )

    demo.setup_run_parser = setup_run_parser
    try:
        yield
    finally:
        demo.setup_run_parser = original


@contextmanager
def with_argv(argv: list[str]) -> Iterator[None]:
    """inference_demo reads sys.argv."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    run(sys.argv[1:])
