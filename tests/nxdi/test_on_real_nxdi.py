"""The checks of tests/nxdi/real on the sources of NxDI 0.6 to 0.9, or on an installed NxDI. See harness/sources.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
from sources import VERSIONS, run_checks  # noqa: E402

REAL = Path(__file__).parent / "real"
PRIMARY = "0.8"  # SDK 2.28: everything by default; of the others some numbers, and everything in the slow tests
NUMBERS = (str(REAL / "check_logits.py"), "-k", "tp1 or plain or sequence_parallel")


@pytest.mark.parametrize("version", VERSIONS)
def test_checks(version):
    run_checks(version, *([str(REAL)] if version == PRIMARY else NUMBERS))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_slow_checks(version):
    run_checks(version, str(REAL), "-m", "slow" if version == PRIMARY else "slow or not slow")
