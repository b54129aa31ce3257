"""The tests of modeling and of calibration again, under every transformers version that `make compat` has installed."""

import json
import os
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "compat"))
import exchange  # noqa: E402

COMPAT = os.environ.get("NXDI_SVD_COMPAT_DIR")
FOLDERS = sorted(path.name for path in Path(COMPAT).glob("[0-9]*")) if COMPAT else []
VERSIONS = [name for name in FOLDERS if name != installed("transformers")]
WITHOUT_TRANSFORMERS = ("test_compat.py", "test_factored_linear.py", "test_low_rank_linear.py")
OPTIONAL = "test_a_sentencepiece_model_is_read_and_carried"  # needs a library that nothing here requires


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
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not {OPTIONAL}", *tests],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Directories written under this version."""
    folder = tmp_path_factory.mktemp("exchange") / "ours"
    exchange.write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not VERSIONS, reason="NXDI_SVD_COMPAT_DIR names no transformers versions: run `make compat`")
@pytest.mark.parametrize("version", VERSIONS[:1] + VERSIONS[1:][-1:] or ["none"])
def test_directories_go_from_version_to_version(version, ours, tmp_path):
    """The oldest and the newest: the same tokens, dtypes and, to float32's rounding, logits, dense and compressed."""
    path = os.pathsep.join([os.path.join(COMPAT, version), str(HERE.parents[1]), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, exchange.__file__, str(ours), str(tmp_path / "theirs")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(json.loads(done.stdout), json.loads((ours / "written.json").read_text()))
    assert_same(exchange.read(tmp_path / "theirs"), json.loads((tmp_path / "theirs" / "written.json").read_text()))


def assert_same(found, written):
    for name in ("dense", "svd"):
        np.testing.assert_allclose(found.pop(name), written.pop(name), rtol=1e-4, atol=1e-4)
    assert found == written
