"""Options of the serving tests, and the cases: one for each model directory and `mlp_impl`."""

import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "nxdi" / "harness")]


def pytest_addoption(parser):
    group = parser.getgroup("serving")
    group.addoption("--device", choices=("cpu", "trn1"), default="cpu", help="cpu: a tiny model on NxDI's CPU path")
    group.addoption("--models", metavar="DIR", help="trn1: folder with the dense and the compressed directories")
    group.addoption("--rows", metavar="FILE", help="append one JSON row for each measurement to this file")


def trn1_cases(models):
    """(directory, mlp_impl, NxDI options) of every model config whose directories are in `models`."""
    for file in sorted((ROOT / "model_configs").glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        name, options = content["model"]["name"].split("/")[1], dict(content["neuron"])
        options.pop("mlp_impl")
        names = [(name, "dense")]
        names += [(f"{name}-svd{round(100 * row['ratio']):02}", impl)
                  for row in content["expected"]["ratios"] for impl in ("svd", "svd_fused")]  # fmt: skip
        for directory, impl in names:
            if (Path(models) / directory).is_dir():
                yield pytest.param(Path(models) / directory, impl, options, id=f"{directory}-{impl}")


def cpu_cases(folder):
    """The same three kinds on a tiny Llama."""
    from tiny_models import save_dense, save_factored

    dense = save_dense(folder / "tiny", "llama", vocab_size=260)
    factored = save_factored(dense, folder / "tiny-svd", 20, ())
    options = {"tp_degree": 1, "batch_size": 1, "max_context_length": 32, "seq_len": 32, "torch_dtype": "float32"}
    for directory, impl in ((dense, "dense"), (factored, "svd"), (factored, "svd_fused")):
        yield pytest.param(directory, impl, options, id=f"{directory.name}-{impl}")


def pytest_generate_tests(metafunc):
    if "mlp_impl" not in metafunc.fixturenames:
        return
    config = metafunc.config
    if config.getoption("--device") == "cpu":
        folder = config._tmp_path_factory.mktemp("serving")
        cases = list(cpu_cases(folder))
    elif config.getoption("--models"):
        cases = list(trn1_cases(config.getoption("--models")))
    else:
        raise pytest.UsageError("--device trn1 needs --models DIR, the folder of the dense and compressed directories")
    if not cases:
        raise pytest.UsageError(f"{config.getoption('--models')} has none of the directories that the configs name")
    metafunc.parametrize(("directory", "mlp_impl", "options"), cases)
