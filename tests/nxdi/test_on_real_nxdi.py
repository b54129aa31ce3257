"""The checks of tests/nxdi/real on the sources of NxDI 0.6 to 0.9, or on an installed NxDI. See harness/sources.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
from sources import VERSIONS, run_checks  # noqa: E402

REAL = str(Path(__file__).parent / "real")


@pytest.mark.parametrize("version", VERSIONS)
def test_checks(version):
    run_checks(version, REAL)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_slow_checks(version):
    run_checks(version, REAL, "-m", "slow")
