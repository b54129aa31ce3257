"""The part of `nxdi-svd doctor --device`: the kernels one after the other, and the table for a bug report."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.cli.options import number, path
from nxdi_svd_plugin.errors import MissingExtraError, RecipeError
from nxdi_svd_plugin.hardware import MODEL_BAND

if TYPE_CHECKING:
    from nxdi_svd_plugin.kernels.ladder.climb import Result

DEVICES = ("simulator", "neuron")
TIMES = {"simulator": f"us (modelled, {MODEL_BAND}; no device run)", "neuron": "us (measured, p50 of nki.benchmark)"}
"""Head of the column of times, by device."""
COLUMNS = ("kernel", "form", "S", "H x I x r", "result", "ulps (allowed)", "ran", "{times}", "first error")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --device and what goes with it."""
    group = parser.add_argument_group("trying the kernels")
    group.add_argument("--device", choices=DEVICES, help="compile and run each kernel there, a process each")
    group.add_argument("--limit", type=number, metavar="SECONDS", help="time for one kernel (60 simulator, 900 neuron)")
    group.add_argument("--work-dir", type=path, metavar="DIR", help="new directory for logs (kept if one fails)")


def check_options(args: argparse.Namespace) -> None:
    """Refuse what has no meaning.

    Raises:
        RecipeError: an option that needs --device, a limit that is no time, a directory that is in use.
        MissingExtraError: the device's compiler, or the simulator's packages, are not there.
    """
    if args.device is None and (args.limit is not None or args.work_dir is not None):
        raise RecipeError("--limit and --work-dir go with --device simulator or --device neuron")
    if args.limit is not None and args.limit <= 0:
        raise RecipeError(f"--limit {args.limit:g} must be more than 0 seconds")
    if args.work_dir is not None and args.work_dir.exists() and any(args.work_dir.iterdir()):
        raise RecipeError(f"--work-dir {args.work_dir} is not empty; name a new directory")
    if args.device == "neuron" and versions.neuronxcc() is None:
        raise MissingExtraError(
            "--device neuron needs the Neuron compiler (neuronx-cc), which is not installed: it comes with the Neuron "
            "DLAMI, SDK 2.26 to 2.28 for trn1. `--device simulator` tries the same kernels without it"
        )
    if args.device is not None:
        for package in ("numpy", "ml_dtypes"):
            versions.import_extra(package, "simulator")


def try_kernels(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Climb the ladder; what was found as JSON and as text. The files stay where something failed or was asked for."""
    from nxdi_svd_plugin.kernels.ladder.climb import LIMITS, climb
    from nxdi_svd_plugin.kernels.ladder.rungs import ladder

    folder = Path(args.work_dir or tempfile.mkdtemp(prefix="nxdi-svd-doctor-")).resolve()
    results = climb(args.device, ladder(args.device), folder, args.limit or LIMITS[args.device])
    findings = {"ok": all(result.ok for result in results), "device": args.device, "times": TIMES[args.device]}
    if findings["ok"] and args.work_dir is None:
        shutil.rmtree(folder)
    findings["rungs"] = [result.to_json() for result in results]
    return findings, "\n".join([*error_lines(results), *table(args.device, results)])


def error_lines(results: list[Result]) -> list[str]:
    """The first error of each rung that failed, and its log."""
    lines = []
    for result in results:
        if not result.ok:
            lines += [f"{result.rung}: {result.status}: {result.error}", f"  log {result.log}"]
    return [*lines, ""] if lines else []


def table(device: str, results: list[Result]) -> list[str]:
    """One markdown table, a row a rung."""
    head = [column.format(times=TIMES[device]) for column in COLUMNS]
    rows = [_row(result) for result in results]
    good = sum(result.ok for result in results)
    return [
        f"kernels on {device}: {good} of {len(results)} ok; bfloat16",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]


def _row(result: Result) -> list[str]:
    rung, found = result.rung, result.found
    sizes = f"{rung.sizes.hidden} x {rung.sizes.width} x {rung.sizes.rank}"
    far = f"{found['ulps']:.1f} ({found['allowed']:.1f})" if "ulps" in found else "-"
    time = f"{found['us']:.1f}" if "us" in found else "-"
    error = result.error.replace("|", "\\|")
    return [rung.kernel, rung.form, str(rung.tokens), sizes, result.status, far, _ran(found), time, error]


def _ran(found: dict[str, Any]) -> str:
    """The evidence that a kernel ran: what it read and wrote, of what its operands have."""
    if "hbm_read_bytes" not in found:
        return "unknown"
    read, written = (found[name] / 1e6 for name in ("hbm_read_bytes", "hbm_write_bytes"))
    whole = found["hbm_read_bytes"] >= found["inputs_bytes"] and found["hbm_write_bytes"] >= found["output_bytes"]
    return f"{'yes' if whole else 'no'}: read {read:.3f} MB, wrote {written:.3f} MB"
