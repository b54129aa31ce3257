"""A progress bar with the time left on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)
SAMPLED = ("forward", "head", "backward")
"""Kinds of steps that count their samples."""


class Progress:
    """Counts the steps that are left, and the samples in them.

    Args:
        steps: kinds of what is left. samples: of one step on this process. enabled: False shows nothing.
    """

    def __init__(self, steps: Sequence[str], samples: int, enabled: bool) -> None:
        self._steps, self._done, self._began = len(steps), 0, time.monotonic()
        self._plain, self._bar = enabled, None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._plain = False
            total = sum(samples if kind in SAMPLED else 0 for kind in steps) + len(steps)
            self._bar = tqdm(total=total, unit="sample", dynamic_ncols=True, file=sys.stderr)

    def step(self) -> None:
        """One sample is done."""
        if self._bar is not None:
            self._bar.update(1)

    def done(self, name: str, note: str) -> None:
        """One step is done; `note` says how it went."""
        self._done += 1
        self.step()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{name}: {note}")
        if self._plain:
            gone = time.monotonic() - self._began
            left = gone / self._done * (self._steps - self._done)
            counted = (name, self._done, self._steps, note, gone, left)
            logger.info("%s (%d of %d): %s; %.0f s gone, about %.0f s left", *counted)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
