"""README.md: readable in a minute, its tables are those of the committed rows, its pictures and pages are there."""

import re
from pathlib import Path

from scripts import script

from nxdi_svd_plugin.compress.factor.rounding import LIMIT

VERSIONS = ("4.51", "2.26", "2.27", "2.28", "3.10", "3.12")  # of transformers, the SDK and Python
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_rows():
    made = script("readme")
    assert made.replaced(PAGE, made.tables()) == PAGE


def test_the_figures_in_the_prose_are_those_of_the_rows():
    made, changes = script("readme"), (ROOT / "CHANGELOG.md").read_text()
    assert made.with_figures(PAGE) == PAGE and made.with_figures(changes) == changes
    marked = {name for page in (PAGE, changes) for _, name, _ in made.FIGURE.findall(page)}
    assert marked == set(made.figures())


def test_no_other_perplexity_is_typed_by_hand():
    """Numbers such as 1.53 stand in tables, at marks and in command lines; versions and ratios are others."""
    for page in (PAGE, (ROOT / "CHANGELOG.md").read_text()):
        prose = re.sub(r"```.*?```|<!-- figure.*?end -->|^\|.*?$", "", page, flags=re.DOTALL | re.MULTILINE)
        assert [
            n for n in re.findall(r"(?<![\d.])\d\.\d\d(?![\d.])", prose) if float(n) >= 1 and n not in VERSIONS
        ] == []


def test_the_limit_of_bfloat16_is_that_of_the_warning():
    assert f"costs more than {100 * LIMIT:.0f} %" in PAGE


def test_it_is_short_and_says_what_never_ran():
    assert len(PAGE.splitlines()) <= 120
    limits = PAGE.split("## What it cannot do")[1]
    assert limits.strip().startswith("- **Nothing has run on a Trainium.**")


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
