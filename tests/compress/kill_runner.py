"""Run as a program by test_kill.py: compress in forked children that are killed by SIGKILL, and resume them.

python kill_runner.py SOURCE WORK points|random|overwrite COUNT SEED RECIPE

points: the child kills itself just before its n-th change of the output (an audit hook counts opens, renames, removals
and directories). random: the parent kills it after a random time, again and again. overwrite: as points, while an older
model is replaced. RECIPE is a preset, paper (one pass) or default (two). Every case ends with --resume and is compared
byte by byte with an uninterrupted run.
"""

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.recipe import Calibration, Recipe, preset

TEXT = Path(sys.argv[2]) / "text.txt"
CALIBRATION = Calibration(str(TEXT), samples=2, length=16)
RECIPE = dataclasses.replace(preset(sys.argv[6]), ratio=0.2, block=2, calibration=CALIBRATION, shard_size=100_000)
OLDER = dataclasses.replace(RECIPE, ratio=0.3, shard_size=60_000)
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
TIMED = {"report.json", "README.md"}
"""Files that say how long the run took."""


def count_changes(output: Path, kill_at: int) -> list[int]:
    """Count the changes below `output`, and die just before number `kill_at` (from 0)."""
    count = [0]

    def hook(event, args):
        inside = event in CHANGES and (
            str(args[0]).startswith(str(output)) or (event in ("os.remove", "os.rmdir") and args[-1] != -1)
        )
        if inside:
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return count


def child(source: Path, output: Path, recipe: Recipe, kill_at: int = -1, **flags: bool) -> int:
    """Fork a compression and return its process id; it exits with 0 and leaves its number of changes beside."""
    pid = os.fork()
    if pid:
        return pid
    try:
        count = count_changes(output, kill_at)
        compress(source, output, recipe, progress=False, device="cpu", **flags)
        output.with_suffix(".count").write_text(str(count[0]))
        os._exit(0)
    finally:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)


def killed(pid: int) -> bool:
    """Wait for a child: True if a SIGKILL ended it, False if it succeeded."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the compression failed; its traceback is above"
    return False


def content(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): b"" if p.name in TIMED else p.read_bytes() for p in sorted(output.rglob("*"))}


def main(source: Path, work: Path, mode: str, count: int, seed: int) -> None:
    generator, output = random.Random(seed), work / "out"
    torch.set_num_threads(1)
    TEXT.write_text("The quick brown fox jumps over the lazy dog.")
    compress(source, work / "older", OLDER, progress=False, device="cpu")  # here, so that no child imports anything
    assert not killed(child(source, work / "whole", RECIPE))
    began = time.monotonic()
    assert not killed(child(source, output, RECIPE))
    whole, longest = content(work / "whole"), time.monotonic() - began
    assert content(output) == whole, "two uninterrupted runs differ"
    if mode == "overwrite":
        shutil.rmtree(output)
        shutil.copytree(work / "older", output)
        assert not killed(child(source, output, RECIPE, overwrite=True))
        assert content(output) == whole, "an overwritten output differs"
    points = int(output.with_suffix(".count").read_text())
    kills = 0
    chosen = range(points) if count >= points else sorted(generator.sample(range(points), count))
    for point in range(count) if mode == "random" else chosen:
        shutil.rmtree(output, ignore_errors=True)
        if mode == "random":
            pid, flags = child(source, output, RECIPE), {"resume": True}
        elif mode == "points":
            pid, flags = child(source, output, RECIPE, point), {"resume": True}
        else:
            shutil.copytree(work / "older", output)
            pid, flags = child(source, output, RECIPE, point, overwrite=True), {"overwrite": True}
        while True:
            if mode == "random":
                time.sleep(generator.uniform(0, 1.1 * longest))
                os.kill(pid, signal.SIGKILL)
            if not killed(pid):
                break
            kills += 1
            if mode == "overwrite" and (output / ".unfinished" / "manifest.json").exists():
                flags = {"resume": True}
            again = generator.randrange(points) if mode != "random" and generator.random() < 0.3 else -1
            pid = child(source, output, RECIPE, again, **flags)
        assert content(output) == whole, f"differs after a kill at point {point} of {points}"
    print(f"{kills} kills, {points} points")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
