"""The package where NxDI is absent: importable, silent for vLLM, one clear error on use; and the import hook."""

import configparser
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

import nxdi_svd_plugin.nxdi
from nxdi_svd_plugin import import_hook
from nxdi_svd_plugin.errors import MissingExtraError, NxdiError
from nxdi_svd_plugin.nxdi import upstream, vllm

ROOT = Path(__file__).parents[2]
without_nxdi = pytest.mark.skipif(upstream.installed(), reason="NxDI is installed in this environment")


@without_nxdi
@pytest.mark.parametrize("name", ["NeuronSvdLlamaForCausalLM", "NeuronSvdQwen3ForCausalLM"])
def test_a_class_says_what_is_missing(name):
    with pytest.raises(MissingExtraError, match="comes with the AWS Neuron SDK"):
        getattr(nxdi_svd_plugin.nxdi, name)


@without_nxdi
def test_vllm_registration_is_silent(caplog, capsys):
    before = list(sys.meta_path)
    vllm.register()
    assert (sys.meta_path, caplog.records, capsys.readouterr()) == (before, [], ("", ""))


def test_an_unsupported_version(monkeypatch):
    package = type(sys)("neuronx_distributed_inference")
    package.__version__ = "0.5.9"
    monkeypatch.setattr(upstream, "installed", lambda: True)
    monkeypatch.setitem(sys.modules, upstream.PACKAGE, package)
    with pytest.raises(NxdiError, match=r"0\.5\.9 is installed; this plugin supports 0\.6 \(SDK 2\.26\), 0\.7"):
        upstream.sdk()


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'NeuronSvdGpt'"):
        nxdi_svd_plugin.nxdi.NeuronSvdGpt  # noqa: B018


def test_the_vllm_entry_point():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, target = setup["options.entry_points"]["vllm.general_plugins"].strip().split(" = ")
    module, function = target.split(":")
    assert name == "nxdi_svd"
    assert getattr(importlib.import_module(module), function) is vllm.register


@pytest.fixture
def module_file(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "watched_module"
    sys.modules.pop("watched_module", None)


def test_the_hook_acts_once_after_the_import(module_file):
    seen = []
    import_hook.after_import(module_file, lambda module: seen.append(module.value))
    import_hook.after_import(module_file, lambda module: seen.append("twice"))
    assert importlib.util.find_spec(module_file) is not None  # looking is not importing
    assert seen == []
    importlib.import_module(module_file)
    assert seen == [1]
    assert not any(isinstance(finder, import_hook.Watcher) and finder.name == module_file for finder in sys.meta_path)


def test_the_hook_acts_now_on_an_imported_module(module_file):
    importlib.import_module(module_file)
    seen = []
    import_hook.after_import(module_file, lambda module: seen.append(module.value))
    assert seen == [1]
