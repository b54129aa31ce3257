"""Wheel and sdist build without a network, hold what the package reads, and what is installed from them works."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

setuptools = pytest.importorskip("setuptools", reason="setuptools, which builds the package, is not installed")
pytestmark = pytest.mark.skipif(
    Version(setuptools.__version__) < Version("70.1"), reason="setuptools below 70.1 builds no wheel on its own"
)
ROOT = Path(__file__).parents[1]
FOLDERS = ("nxdi_svd_plugin", "docs", "model_configs", "constraints", "tests", "benchmarks", "demo", "integration")
LIKE_GIT = ("*.pyc", "out", "__pycache__")


def build(kind, source, out):
    """The file that setuptools' own backend makes, as pip and build call it."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    assert "DeprecationWarning" not in done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel built from what it unpacks to)."""
    folder = tmp_path_factory.mktemp("built")
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    for path in ROOT.iterdir():
        if path.name in FOLDERS:
            copy_tree(path, source / path.name)
        elif path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    sdist = build("sdist", source, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return sdist, build("wheel", folder / sdist.name.removesuffix(".tar.gz"), out)


def copy_tree(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LIKE_GIT))


def ours(names):
    return {name for name in names if name.startswith("nxdi_svd_plugin/")}


def test_the_wheel_has_every_file_of_the_package(built):
    """Built from the sdist, so that has them too."""
    with zipfile.ZipFile(built[1]) as wheel:
        held = ours(wheel.namelist())
    package = ROOT / "nxdi_svd_plugin"
    files = {p.relative_to(ROOT).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert held == files
    assert {"nxdi_svd_plugin/py.typed", "nxdi_svd_plugin/data/calibration.txt"} <= held


def test_the_sdist_has_what_people_look_for(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "docs/format.md", "model_configs/llama-3.2-1b.yaml"}
    assert wanted | {"tests/test_packaging.py", "constraints/neuron-2.28.txt", "Makefile"} <= names
    assert not [name for name in names if name.endswith(".pyc") or "__pycache__" in name]


def test_what_is_installed_reads_its_data_and_has_its_commands(built, tiny_llama, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(built[1])], check=True)
    code = """
import importlib.metadata, importlib.resources, pathlib
import nxdi_svd_plugin
from nxdi_svd_plugin.texts import read_text
from nxdi_svd_plugin.version import __version__
assert pathlib.Path(nxdi_svd_plugin.__file__).is_relative_to(pathlib.Path("site").resolve()), nxdi_svd_plugin.__file__
task = importlib.resources.files("nxdi_svd_plugin") / "evaluate" / "tasks" / "ptb.yaml"
print(len(read_text("builtin").content), task.is_file())
[found] = [d for d in importlib.metadata.distributions(path=["site"]) if d.name == "nxdi-svd-plugin"]
assert found.version == __version__
print(sorted((e.group, e.name) for e in found.entry_points), found.metadata["License"])
print(len(found.metadata.get_all("Classifier")), found.metadata.get_all("Project-URL"))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == f"{len((ROOT / 'nxdi_svd_plugin/data/calibration.txt').read_text())} True"
    assert second == "[('console_scripts', 'nxdi-svd'), ('vllm.general_plugins', 'nxdi_svd')] Apache-2.0"
    assert int(third.split()[0]) >= 8 and "arxiv.org/abs/2510.25977" in third
    command, dry = tmp_path / "site" / "bin" / "nxdi-svd", f"{tiny_llama} --output out --block 2 --length 64 --dry-run"
    for words, said in (("version", "nxdi-svd-plugin"), (f"compress {dry} --quiet", "all checks passed")):
        done = subprocess.run([sys.executable, str(command), *words.split()], **run)
        assert done.returncode == 0 and said in done.stdout and not done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_every_module_that_is_imported_at_import_time_is_required():
    """Third-party imports outside functions, by distribution, against install_requires (and the extras' own files)."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = {Requirement(line).name for line in config["options"]["install_requires"].split("\n") if line}
    names = {"yaml": "pyyaml"}
    optional = {"ml_dtypes", "matplotlib", "lm_eval", "datasets", "peft", "neuronxcc", "nki"}
    nxdi_only = {"neuronx_distributed", "neuronx_distributed_inference", "torch_xla", "torch_neuronx"}
    for path in (ROOT / "nxdi_svd_plugin").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for root in {module.partition(".")[0] for module in modules}:
                known = root in sys.stdlib_module_names or root == "nxdi_svd_plugin" or root in optional | nxdi_only
                assert known or names.get(root, root) in required, f"{path}: {root} is no requirement"
