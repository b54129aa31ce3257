"""The table of docs/versions.md out of versions.py.

python tests/versions_page.py     # writes it
"""

from __future__ import annotations

from pathlib import Path

from nxdi_svd_plugin.versions import SDKS

PAGE = Path(__file__).parents[1] / "docs" / "versions.md"
BEGIN, END = "<!-- table of nxdi_svd_plugin/versions.py -->\n", "<!-- end of table -->\n"
HEAD = ("SDK", "NxDI", "transformers", "torch", "NKI", "Python", "`mlp_impl` on trn1", "tested on a CPU", "note")


def table() -> str:
    """One row for every SDK."""
    rows = [
        (s.release, s.nxdi or "none", s.transformers, s.torch, s.nki, s.python, names(s.trn1), names(s.cpu), s.note)
        for s in SDKS
    ]
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "".join(f"| {' | '.join(cell or '-' for cell in line)} |\n" for line in lines)


def names(impls: tuple[str, ...]) -> str:
    """The implementations in code."""
    return ", ".join(f"`{impl}`" for impl in impls)


def with_table(page: str) -> str:
    """The page with its table as versions.py has it."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
