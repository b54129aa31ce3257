"""One rung, in this process: `python -m nxdi_svd_plugin.kernels.ladder.run DEVICE RUNG_JSON RESULT_FILE`.

The result file is rewritten at every step, so that it says how far a process came that was killed.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nxdi_svd_plugin.kernels.ladder.rungs import Rung, from_json
from nxdi_svd_plugin.kernels.ladder.ulps import ulps

if TYPE_CHECKING:
    from nxdi_svd_plugin.kernels.ladder.cases import Case

MESSAGE = 400
"""Characters of an error that are kept; the log has the rest."""


def climb_one(device: str, rung: Rung, result: Path) -> int:
    """Run a rung and write what was found; 1 if an exception ended it."""
    found: dict[str, Any] = {"step": "build"}
    _write(result, found)
    try:
        _run(device, rung, result, found)
    except Exception as error:
        traceback.print_exc()
        found["error"] = first_error(error)
        _write(result, found)
        return 1
    _write(result, {**found, "step": "done"})
    return 0


def _run(device: str, rung: Rung, result: Path, found: dict[str, Any]) -> None:
    from nxdi_svd_plugin.kernels.ladder.devices import MACHINES

    module, function = rung.builder.split(":")
    case = getattr(importlib.import_module(module), function)(rung)
    found |= {"inputs_bytes": sum(array.nbytes for array in case.inputs), "output_bytes": case.low.nbytes}
    machine = MACHINES[device](case)
    for step, part in (
        ("compile and run", lambda: compared(case, machine.run())),
        ("read the counters", machine.counters),
        ("time", lambda: {"us": machine.microseconds()}),
    ):
        found["step"] = step
        _write(result, found)
        found.update(part())


def compared(case: Case, output: Any) -> dict[str, float]:
    """How far the output is from the truth, and how far it may be: twice as far as plain bfloat16, and one unit."""
    exact = case.exact.astype(case.low.dtype).astype(np.float64)
    return {"ulps": ulps(np.asarray(output), exact), "allowed": 2 * ulps(case.low, exact) + 1}


def first_error(error: BaseException) -> str:
    """The error that the others followed from, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE]


def _write(path: Path, found: dict[str, Any]) -> None:
    """In one piece, since the process may be killed at any time."""
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(found))
    whole.replace(path)


if __name__ == "__main__":
    sys.exit(climb_one(sys.argv[1], from_json(json.loads(sys.argv[2])), Path(sys.argv[3])))
