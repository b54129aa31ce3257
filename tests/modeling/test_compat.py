"""The tests of modeling and of calibration again, under every transformers version that `make compat` has installed."""

import os
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPAT = os.environ.get("NXDI_SVD_COMPAT_DIR")
FOLDERS = sorted(path.name for path in Path(COMPAT).glob("[0-9]*")) if COMPAT else []
VERSIONS = [name for name in FOLDERS if name != installed("transformers")]
WITHOUT_TRANSFORMERS = ("test_compat.py", "test_factored_linear.py", "test_low_rank_linear.py")


@pytest.mark.slow
@pytest.mark.skipif(not VERSIONS, reason="NXDI_SVD_COMPAT_DIR names no transformers versions: run `make compat`")
@pytest.mark.parametrize("version", VERSIONS or ["none"])
def test_models_load_and_run(version):
    folders = (HERE, HERE.parent / "compress" / "calibrate")  # calibration stands on the inside of transformers' layers
    tests = sorted(str(p) for folder in folders for p in folder.glob("test_*.py") if p.name not in WITHOUT_TRANSFORMERS)
    check = f"import transformers; assert transformers.__version__ == {version!r}, transformers.__version__"
    environment = {**os.environ, "PYTHONPATH": os.path.join(COMPAT, version)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
