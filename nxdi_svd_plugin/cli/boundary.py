"""Where exceptions of other people's code end: one sentence instead of a traceback.

An exception that our own code raised by mistake is a bug and keeps its traceback. `--log-level debug` shows the
traceback of every other one too.
"""

from __future__ import annotations

import traceback

OURS = __name__.partition(".")[0]
MEMORY = ("can't allocate memory", "out of memory")
"""How torch says it, in a RuntimeError on a CPU."""
LONGEST = 300


def sentence(error: Exception) -> str:
    """What to tell the user; "" for a bug of ours."""
    said = shortened(error)
    if isinstance(error, MemoryError) or any(words in said for words in MEMORY):
        return (
            f"not enough memory ({said}): smaller batches or windows need less; `nxdi-svd plan` says what a "
            "compression needs"
        )
    if isinstance(error, ImportError):
        return f"a Python package is missing or does not fit ({said}); `nxdi-svd doctor` says what is installed"
    if isinstance(error, OSError):
        return f"the system refused ({said}); check the path, its permissions and the space left"
    package = origin(error)
    return f"{package} stopped with {type(error).__name__} ({said}); --log-level debug shows where" if package else ""


def exit_code(error: Exception) -> int:
    """3 where a package is missing, else 1."""
    return 3 if isinstance(error, ImportError) else 1


def origin(error: Exception) -> str:
    """The package outside ours in whose code an exception was raised, "" if that was our code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""
    return "" if package in (OURS, "__main__") else package


def shortened(error: Exception) -> str:
    """The message of an exception in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LONGEST else said[: LONGEST - 4] + " ..."
