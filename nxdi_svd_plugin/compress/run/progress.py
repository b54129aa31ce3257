"""A progress bar with the time left on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger(__name__)


class Progress:
    """Counts steps (samples and matrices) of all layers.

    Args:
        layers: to do.
        steps: in one layer.
        enabled: False shows nothing.
    """

    def __init__(self, layers: int, steps: int, enabled: bool) -> None:
        self._layers, self._steps, self._done, self._began = layers, steps, 0, time.monotonic()
        self._plain, self._bar = enabled, None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._plain = False
            self._bar = tqdm(total=layers * steps, unit="step", dynamic_ncols=True, file=sys.stderr)

    def step(self) -> None:
        """One sample or matrix is done."""
        if self._bar is not None:
            self._bar.update(1)

    def layer(self, layer: int | str, note: str) -> None:
        """One layer (or named step of a two-pass run) is done; `note` says how it went."""
        name = layer if isinstance(layer, str) else f"layer {layer}"
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{name}: {note}")
        if self._plain:
            gone = time.monotonic() - self._began
            left = gone / self._done * (self._layers - self._done)
            logger.info(
                "%s (%d of %d): %s; %.0f s gone, about %.0f s left",
                name,
                self._done,
                self._layers,
                note,
                gone,
                left,
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
