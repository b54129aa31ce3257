"""Which SDK an NxDI version belongs to, and that docs/versions.md shows the table."""

import pytest
from versions_page import PAGE, with_table

from nxdi_svd_plugin import versions


@pytest.mark.parametrize(
    ("nxdi", "release"),
    [
        ("0.6.10598", "2.26"),
        ("0.7.15063+d48f1a2", "2.27"),
        ("0.8.16251", "2.28"),
        ("0.9.17334", "2.29"),
        ("0.10.17970", "2.30"),
        ("0.10.18399+abc.d", "2.31"),
        ("0.10.183990", None),
        ("0.10.1", None),
        ("0.80.1", None),
        ("0.1.0", None),
        ("1.0", None),
    ],
)
def test_the_sdk_of_an_nxdi(nxdi, release):
    found = versions.sdk_of(nxdi)
    assert (found and found.release) == release


def test_what_is_tested_is_what_has_a_public_source():
    assert [sdk.release for sdk in versions.SDKS if sdk.tested] == ["2.26", "2.27", "2.28", "2.29"]
    assert all("untested" in sdk.note or not sdk.nxdi for sdk in versions.SDKS if not sdk.tested)


def test_the_page_shows_the_table():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python tests/versions_page.py"
    assert "| 2.31 | 0.10.18399 | - | 2.9 | 0.5 | - | `dense`, `svd` | - |" in page
