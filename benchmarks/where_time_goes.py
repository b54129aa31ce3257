"""CPU seconds of one `compress` by what it is doing, in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("forward", "head", "backward", "statistics", "eigendecompositions", "pivots", "refit", "rest")


class Clock:
    """CPU seconds of named parts; a part inside another is not counted in the outer one, but for those of a refit."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = ["rest"]
        self._last = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.spent[self._open[-1]] += now - self._last
        self._last = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time goes to `part`."""

        def run(*args: Any, **options: Any) -> Any:
            if self._open[-1] == "refit":
                return function(*args, **options)
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **options)
            finally:
                self._switch()
                self._open.pop()

        return run

    def replace(self, part: str, owner: Any, name: str) -> None:
        """Time a function or method wherever a module of this package has its name."""
        original = getattr(owner, name)
        timed = self.timed(part, original)
        setattr(owner, name, timed)
        for module in [m for key, m in sys.modules.items() if key.startswith("nxdi_svd_plugin")]:
            if getattr(module, name, None) is original:
                setattr(module, name, timed)

    def total(self) -> dict[str, float]:
        """Seconds by part, and of all of them as `all`."""
        self._switch()
        seconds = {part: round(self.spent[part], 1) for part in PARTS}
        return {**seconds, "all": round(sum(self.spent.values()), 1)}


def compress_timed(model: Path, output: Path, recipe: Any) -> dict[str, float]:
    """`nxdi_svd_plugin.compress` from the first check to the finished directory."""
    import torch

    import nxdi_svd_plugin.compress.run.run as runner
    from nxdi_svd_plugin.compress.calibrate import gradient, layer, statistics
    from nxdi_svd_plugin.compress.run import refitting
    from nxdi_svd_plugin.factorize import interpolative, spectrum

    clock = Clock()
    clock.replace("forward", layer, "run_sample")
    clock.replace("head", gradient.Head, "gradient")
    clock.replace("backward", gradient.LayerBackward, "gradient")
    clock.replace("statistics", statistics.Statistics, "add")
    clock.replace("statistics", statistics.Statistics, "add_squares")
    clock.replace("eigendecompositions", spectrum, "eigh")
    clock.replace("eigendecompositions", torch.linalg, "eigvalsh")
    clock.replace("pivots", interpolative, "interpolate")
    clock.replace("refit", refitting, "refitted")
    runner.compress(model, output, recipe, overwrite=True, progress=False, device="cpu")
    return clock.total()
