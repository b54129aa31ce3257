"""How much the calibration has in memory at a time; the plan reads it too, without torch."""

from __future__ import annotations

SLICE = 512
"""Tokens whose logits are computed together."""

AT_ONCE = 1024
"""Tokens of a trial that go through a layer together."""
