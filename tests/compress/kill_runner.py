"""Run as a program by test_kill.py: compress in forked children that are killed by SIGKILL, and resume them.

python kill_runner.py SOURCE WORK changes|random|overwrite COUNT SEED RECIPE

changes: the child kills itself just before a change of the output (an audit hook sees files opened for writing,
renamed, removed and cut, and directories made and removed), COUNT times for every kind of change after every other.
random: the parent kills it COUNT times after a random time, again and again. overwrite: as changes, while an older
model is replaced. RECIPE is one of RECIPES, which have a list of steps each. Every case ends with --resume and is
compared byte by byte with an uninterrupted run.
"""

import dataclasses
import gc
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.recipe import Calibration, Recipe, preset

TEXT = Path(sys.argv[2]) / "text.txt"
CALIBRATION = Calibration(str(TEXT), samples=2, length=16)
RECIPES = {
    "paper": preset("paper"),
    "default": dataclasses.replace(preset("default"), tp_degree=2),
    "pair": dataclasses.replace(preset("default"), form="pair", allocation="uniform", tp_degree=3),
    "input": dataclasses.replace(preset("paper"), form="interpolative"),
    "drop": dataclasses.replace(preset("default"), drop=True, refit=True),
    "scale": dataclasses.replace(preset("default"), drop=True, scale="builtin-mixed"),
}
"""One pass; forward, back and ranks; no ranks; no gradients; statistics that wait for the widths, and a refit; losses
that are measured before."""
RECIPE = dataclasses.replace(RECIPES[sys.argv[6]], ratio=0.2, block=2, calibration=CALIBRATION, shard_size=100_000)
OLDER = dataclasses.replace(RECIPE, ratio=0.3, shard_size=60_000)
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
TIMED = {"report.json", "README.md"}
"""Files that say how long the run took."""


def kind_of(event: str, arguments: tuple, output: Path) -> str | None:
    """The name of a change below `output`, numbers as #, e.g. "os.rename /.unfinished/hidden-#-#.tmp"; None if none."""
    path, held = str(arguments[0]), event in ("os.remove", "os.rmdir") and arguments[-1] != -1
    if not (held or f"{path}/".startswith(f"{output}/")):
        return None
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return None
    return f"{event} {re.sub('[0-9]+', '#', path.removeprefix(str(output)))}"


def watch_changes(output: Path, kill_at: int) -> list[str]:
    """The kinds of the changes below `output`, as they come; dies just before number `kill_at` (from 0)."""
    seen: list[str] = []

    def hook(event, arguments):
        if event in CHANGES and (kind := kind_of(event, arguments, output)):
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(kind)

    sys.addaudithook(hook)
    return seen


def child(source: Path, output: Path, recipe: Recipe, kill_at: int = -1, **flags: bool) -> int:
    """Fork a compression and return its process id; it exits with 0 and leaves the kinds of its changes beside."""
    pid = os.fork()
    if pid:
        return pid
    try:
        seen = watch_changes(output, kill_at)
        compress(source, output, recipe, progress=False, device="cpu", **flags)
        output.with_suffix(".changes").write_text(json.dumps(seen))
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


def kinds(changes: list[str]) -> dict[tuple[str, str], list[int]]:
    """The places of every kind of change after every other: what a kill finds is what the one before it has left."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, kind in enumerate(zip(["", *changes], changes, strict=False)):
        places.setdefault(kind, []).append(place)
    return places


class Scene:
    """One output, whole as an uninterrupted run leaves it, broken again and again."""

    def __init__(self, source: Path, work: Path, mode: str, seed: int) -> None:
        self.source, self.mode, self.output, self.older = source, mode, work / "out", work / "older"
        self.generator, self.kills = random.Random(seed), 0
        self.flags = {"overwrite": True} if mode == "overwrite" else {}
        compress(source, self.older, OLDER, progress=False, device="cpu")  # here, so that no child imports anything
        gc.collect()
        gc.freeze()  # what is here now is the children's too, and no garbage
        assert not killed(child(source, work / "whole", RECIPE))
        self.whole = content(work / "whole")
        began = time.monotonic()
        self.changes = self._uninterrupted()
        self.longest = time.monotonic() - began

    def _uninterrupted(self) -> list[str]:
        """The changes of a whole run, which ends with the bytes of the first one."""
        self._before()
        assert not killed(child(self.source, self.output, RECIPE, **self.flags))
        assert content(self.output) == self.whole, "two uninterrupted runs differ"
        return json.loads(self.output.with_suffix(".changes").read_text())

    def _before(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        if self.mode == "overwrite":
            shutil.copytree(self.older, self.output)

    def _again(self) -> dict[str, bool]:
        """How a user goes on: --resume, or --overwrite as long as the older model is all there is."""
        begun = self.mode != "overwrite" or (self.output / ".unfinished" / "manifest.json").exists()
        return {"resume": True} if begun else self.flags

    def _kill_at_random(self, pid: int) -> None:
        time.sleep(self.generator.uniform(0, 1.1 * self.longest))
        os.kill(pid, signal.SIGKILL)

    def break_and_resume(self, places: Iterator[int]) -> None:
        """Kill before change `places`, -1 for not at all, or at random moments (mode random), resume and compare."""
        self._before()
        flags, place = self.flags, next(places)
        while True:
            pid = child(self.source, self.output, RECIPE, place, **flags)
            if self.mode == "random":
                self._kill_at_random(pid)
            if not killed(pid):
                break
            self.kills += 1
            flags, place = self._again(), next(places)
        assert content(self.output) == self.whole, "differs after a kill"

    def places(self, first: int) -> Iterator[int]:
        """`first`; of the resumed runs, three in ten are killed too; at last one is not."""
        yield first
        while self.generator.random() < 0.3:
            yield self.generator.randrange(len(self.changes))
        yield -1


def main(source: Path, work: Path, mode: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    TEXT.write_text("The quick brown fox jumps over the lazy dog.")
    scene = Scene(source, work, mode, seed)
    if mode == "random":
        while scene.kills < count:
            scene.break_and_resume(itertools.repeat(-1))
    else:
        found = kinds(scene.changes).values()
        for place in (p for places in found for p in scene.generator.sample(places, min(count, len(places)))):
            try:
                scene.break_and_resume(scene.places(place))
            except AssertionError as error:
                raise AssertionError(f"killed before change {place}, {scene.changes[place]}: {error}") from error
    print(f"{scene.kills} kills, {len(kinds(scene.changes))} kinds, {len(scene.changes)} changes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
