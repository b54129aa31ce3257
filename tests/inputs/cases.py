"""What people bring and what each of it gets: one list, run by test_inputs.py and written as docs/inputs.md.

    python tests/inputs/cases.py     # writes docs/inputs.md

A case builds its files in an empty working directory and gives one command line. A new kind of input is a new case, in
the file of its section.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


@dataclass(frozen=True)
class Folder:
    """The working directory of a case, and the models that it may copy: "llama", "qwen3", "svd_llama"."""

    path: Path
    models: dict[str, Path]

    def copy(self, model: str, name: str) -> Path:
        """A copy of a tiny model in the working directory."""
        return Path(shutil.copytree(self.models[model], self.path / name))

    def write(self, name: str, content: str | bytes) -> Path:
        """A file with this content, text as UTF-8."""
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@dataclass(frozen=True)
class Case:
    """One row of the table.

    kind: what is brought, in words. command: the words after `nxdi-svd`; its paths are relative to the working
    directory. build: makes the files. code: the exit code. says: a part of what stderr shows; an error is one line, and
    a case without words that works shows nothing there.
    """

    kind: str
    command: str
    build: Callable[[Folder], object]
    says: str = ""
    code: int = 0

    def row(self) -> str:
        """The row of the table."""
        gets = (
            f"exit {self.code}: {self.says}" if self.code else "works" + (f"; says: {self.says}" if self.says else "")
        )
        cells = (self.kind, f"`{self.command.split()[0]}`", gets)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sections() -> dict[str, list[Case]]:
    """The cases by section, in the order of the page."""
    import beside_cases
    import config_cases
    import download_cases
    import model_cases
    import text_cases
    import usage_cases

    return {
        "Model directories": model_cases.CASES,
        "config.json as programs and people write it": config_cases.CASES,
        "Downloads, caches and what other programs leave": download_cases.CASES,
        "Tokenizers, templates and generation configs": beside_cases.CASES,
        "Texts": text_cases.CASES,
        "Command lines and recipes": usage_cases.CASES,
    }


INTRODUCTION = """\
# What you may bring, and what you get

Every row is a test (`tests/inputs/`), run on tiny models made in code; `python tests/inputs/cases.py` writes this page
from the tests' list. "works" is exit code 0; an error is one line on stderr, of which a part is shown (exit codes: 1 a
check failed or something is unusable, 2 wrong usage, 3 an extra is missing). Nothing is written into a source.
"""


def page() -> str:
    """docs/inputs.md."""
    parts = [INTRODUCTION]
    for title, cases in sections().items():
        rows = "\n".join(case.row() for case in cases)
        parts.append(f"## {title}\n\n| you bring | to | what you get |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
