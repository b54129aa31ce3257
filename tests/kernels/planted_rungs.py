"""Rungs with one fault each: what the ladder must report. Built in the rung's own process."""

import os
import subprocess
import time

import numpy as np

from nxdi_svd_plugin.kernels.ladder.cases import Case, matmul
from nxdi_svd_plugin.kernels.nki import jit, nl

PID = "grandchild.pid"


def _with(rung, function, **changes):
    case = matmul(rung)
    return Case(jit(function), changes.get("inputs", case.inputs), changes.get("exact", case.exact), case.low)


def fails(rung):
    """A tile of more than 128 partitions, reported while another error is handled."""

    def kernel(x_t, w):
        try:
            return nl.load(w[0:256, 0:128])
        finally:
            raise KeyError("afterwards")

    return _with(rung, kernel)


def hangs(rung):
    """A compiler that never comes back: a process started by the rung's, which writes down its id."""

    def kernel(x_t, w):
        child = subprocess.Popen(["sleep", "600"])
        with open(PID, "w") as file:
            file.write(str(child.pid))
        time.sleep(600)

    return _with(rung, kernel)


def wrong(rung):
    """Right but for one element of the output, by a tenth."""
    case = matmul(rung)
    x_t, w = case.inputs
    w = w.astype(np.float32)
    w[:, np.argmax(np.abs(case.exact[0]))] *= 1.1
    return Case(case.kernel, [x_t, w.astype(x_t.dtype)], case.exact, case.low)


def not_a_number(rung):
    """Out of weights that are none."""
    case = matmul(rung)
    return Case(case.kernel, [case.inputs[0], np.full_like(case.inputs[1], np.nan)], case.exact, case.low)


def zeros(rung):
    """Zeros where zeros are right, without a look at the weights."""

    def kernel(x_t, w):
        out = nl.ndarray((x_t.shape[1], w.shape[1]), dtype=x_t.dtype, buffer=nl.shared_hbm)
        nl.store(out[0:1, 0:512], value=nl.zeros((1, 512), dtype=x_t.dtype, buffer=nl.sbuf))
        return out

    return _with(rung, kernel, exact=0 * matmul(rung).exact)


def crashes(rung):
    """A process that dies without an exception, after a line of the compiler's."""
    print("compiling\n[XYZ123] nothing left to say\nand more", flush=True)
    os.abort()
