"""`nxdi-svd neuron run` end to end on the CPU: inference_demo with --mlp-impl; and its command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi.runner import command_line

sys.path.insert(0, str(Path(__file__).parent / "harness"))
from sources import ROOT, environment  # noqa: E402

RUN = "import neuron_stubs; neuron_stubs.install(); import upstream_patches; upstream_patches.apply(); "
RUN += "import sys; from nxdi_svd_plugin.cli.main import main; sys.exit(main())"
OPTIONS = ["--on-cpu", "--torch-dtype", "float32", "--batch-size", "1", "--seq-len", "64", "--max-context-length", "64"]
OPTIONS += ["--prompt", "run", "--tp-degree", "1", "--pad-token-id", "2"]


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def directory(request, tmp_path_factory):
    """Llama in two groups, Qwen3 in one."""
    folder, groups = tmp_path_factory.mktemp(request.param), 2 if request.param == "llama" else 1
    return save_factored(save_dense(folder / "dense", request.param), folder / "svd", 20, groups=groups)


def neuron_run(version, *arguments):
    command = [sys.executable, "-c", RUN, "neuron", "run", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(version), capture_output=True, text=True)


@pytest.mark.parametrize("version", ["0.8", pytest.param("0.9", marks=pytest.mark.slow)])
def test_token_matching_on_the_cpu(version, directory, tmp_path):
    paths = ["--model-path", str(directory), "--compiled-model-path", str(tmp_path)]
    more = ["--mlp-impl", "svd_fused", "--check-accuracy-mode", "token-matching"]
    found = neuron_run(version, *paths, *OPTIONS, *more)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
    assert "Checking accuracy by token matching" in found.stdout
    assert "is accurate!" in found.stderr
    assert "Output 0: run" in found.stdout


def test_a_compressed_directory_needs_mlp_impl(directory, tmp_path):
    found = neuron_run("0.8", "--model-path", str(directory), "--compiled-model-path", str(tmp_path), *OPTIONS)
    assert found.returncode == 1
    assert "error: the checkpoint is SVD-compressed" in found.stderr


def test_without_nxdi_one_clear_error():
    command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "neuron", "run", "--model-path", "x"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "not installed" not in found.stderr:
        pytest.skip("an NxDI is installed in this environment")
    assert found.returncode == 3
    assert "comes with the AWS Neuron SDK" in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model-type", "llama", "--task-type", "causal-lm", "run", "--prompt", "run", "--tp-degree", "2"],
        ["run", "--model-type", "llama", "--prompt", "run", "--tp-degree", "2"],
        ["--prompt", "run", "--tp-degree", "2", "--model-type", "llama"],
    ],
)
def test_model_type_may_stand_anywhere(arguments):
    rest = ["--prompt", "run", "--tp-degree", "2"]
    assert command_line(arguments) == ["--model-type", "llama", "--task-type", "causal-lm", "run", *rest]


def test_model_type_comes_from_the_directory(directory):
    found = command_line(["--model-path", str(directory)])
    assert found[1] in ("svd_llama", "svd_qwen3")
    assert found[1].removeprefix("svd_") in directory.parent.name


def test_a_directory_without_config(tmp_path):
    with pytest.raises(NxdiError, match="no readable config.json"):
        command_line(["--model-path", str(tmp_path)])


def test_a_dense_config_that_stock_nxdi_would_misread(tmp_path):
    config = {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NxdiError, match="written by transformers 5 .* RoPE base 10000"):
        command_line(["--model-path", str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert command_line(["--model-path", str(tmp_path)])[1] == "llama"
