"""README.md: readable in a minute, its tables are those of the committed rows, its pictures and pages are there."""

import re
from pathlib import Path

from scripts import script

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_rows():
    made = script("readme")
    assert made.replaced(PAGE, made.tables()) == PAGE


def test_it_is_short_and_says_what_never_ran():
    assert len(PAGE.splitlines()) <= 120
    limits = PAGE.split("## What it cannot do")[1]
    assert limits.strip().startswith("- **Nothing has run on a Trainium.**")


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
