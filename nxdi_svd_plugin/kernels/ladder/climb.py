"""The ladder: each rung in a process group of its own, killed when its time is over, and what became of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.kernels.ladder.rungs import Rung

logger = logging.getLogger(__name__)

BINDINGS = {"simulator": "simulator", "neuron": "neuronxcc"}
"""Where `nki` comes from in a rung's process, by device: the value of NXDI_SVD_NKI."""
LIMITS = {"simulator": 60.0, "neuron": 900.0}
"""Seconds for a rung unless something else is asked for; a first compilation takes minutes."""
COMPILER_LOG = "log-neuron-cc*.txt"
"""The compiler's log (neuron-compiler-cli-reference-guide.rst of aws-neuron-sdk v2.26.1, --logfile)."""
_ERROR = re.compile(r"\berror\b|\b\w+Error\b|\[[A-Z]{3}\d{3}\]|NCC_[A-Z]", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """What became of a rung.

    status: "ok", "wrong" (too far from numpy), "not run" (right, but the counters show less traffic than its operands),
        "error" (an exception), "crashed" (the process died) or "killed" (its time was over).
    error: the first one, "" where there is none. log: the compiler's, else the output of the process.
    found: as the process wrote it (ladder.run): "ulps", "allowed", "us", "hbm_read_bytes", ... as far as it came.
    seconds: of wall time for the whole process.
    """

    rung: Rung
    status: str
    error: str
    log: Path
    found: dict[str, Any]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the rung holds."""
        return self.status == "ok"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rung": self.rung.to_json(), "log": str(self.log)}


def climb(device: str, rungs: Iterable[Rung], folder: Path, limit: float) -> list[Result]:
    """Every rung, one after the other, whatever became of those before it; its files are in a folder of `folder`."""
    results = []
    for number, rung in enumerate(rungs):
        place = folder / f"{number:02d}-{str(rung).replace(' ', '-')}"
        place.mkdir(parents=True)
        results.append(_one(device, rung, place, limit))
        logger.info("%s: %s (%.1f s)", rung, results[-1].status, results[-1].seconds)
    return results


def _one(device: str, rung: Rung, place: Path, limit: float) -> Result:
    start, output, file = time.monotonic(), place / "output.txt", place / "result.json"
    command = [
        sys.executable,
        "-m",
        "nxdi_svd_plugin.kernels.ladder.run",
        device,
        json.dumps(rung.to_json()),
        str(file),
    ]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    env = {**os.environ, "NXDI_SVD_NKI": BINDINGS[device], "PYTHONPATH": path}
    with output.open("w") as log:
        code = _limited(command, limit, cwd=place, env=env, stdout=log, stderr=subprocess.STDOUT)
    found = json.loads(file.read_text()) if file.exists() else {"step": "start"}
    status, error = judge(found, code, limit, output.read_text(errors="replace"))
    logs = sorted(place.rglob(COMPILER_LOG), key=lambda path: path.stat().st_mtime)
    return Result(rung, status, error, logs[-1] if logs else output, found, time.monotonic() - start)


def _limited(command: list[str], limit: float, **settings: Any) -> int | None:
    """The exit code of a command, None where its time was over; nothing that it started outlives it."""
    process = subprocess.Popen(command, start_new_session=True, **settings)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def judge(found: dict[str, Any], code: int | None, limit: float, output: str) -> tuple[str, str]:
    """(status, first error) of a rung from what its process wrote, its exit code and its output."""
    step = found["step"]
    if code is None:
        return "killed", f"still in step {step!r} after {limit:g} s"
    if "error" in found:
        return "error", f"step {step!r}: {found['error']}"
    if code:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "crashed", f"{how} in step {step!r}: {_first_line(output)}"
    if found["ulps"] > found["allowed"]:
        return "wrong", f"{found['ulps']:.1f} ulps of bfloat16 from numpy, {found['allowed']:.1f} allowed"
    read, written = found["hbm_read_bytes"], found["hbm_write_bytes"]
    if read < found["inputs_bytes"] or written < found["output_bytes"]:
        return "not run", (
            f"{read} bytes read of {found['inputs_bytes']} and {written} written of {found['output_bytes']}: "
            "something else made the result"
        )
    return "ok", ""


def _first_line(output: str) -> str:
    """The first line that speaks of an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if _ERROR.search(line)), lines[-1] if lines else "no output")
