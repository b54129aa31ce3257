"""Run a function as tp gloo ranks in forked children: the imports are done, and each model has its own processes."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import traceback

import torch


class RankError(AssertionError):
    """A rank raised; the message is its traceback."""


def run(tp: int, function, *args, **kwargs) -> list:
    """function(*args, **kwargs) on ranks 0..tp-1; returns their results in order (tensors, lists, dicts, numbers)."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, tp, port, folder, function, args, kwargs) for rank in range(tp)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        results = [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(tp) if not codes[rank]]
        failures = [open(f"{folder}/{rank}.error").read() for rank in range(tp) if codes[rank]]
    if failures:
        raise RankError("\n".join(failures))
    return results


def _fork(rank, tp, port, folder, function, args, kwargs) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(NXD_CPU_MODE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(tp), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(tp))
        torch.save(function(*args, **kwargs), f"{folder}/{rank}")
        code = 0
    except BaseException:
        with open(f"{folder}/{rank}.error", "w") as out:
            out.write(f"rank {rank}:\n{traceback.format_exc()}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
