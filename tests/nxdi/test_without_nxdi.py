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


def watched(package):
    return any(isinstance(finder, import_hook.Watcher) and finder.package == package for finder in sys.meta_path)


def test_the_hook_acts_once_after_the_import(module_file):
    seen = []
    import_hook.after_import(module_file, lambda module: seen.append(module.value))
    import_hook.after_import(module_file, lambda module: seen.append("twice"))
    assert importlib.util.find_spec(module_file) is not None  # looking is not importing
    assert seen == []
    importlib.import_module(module_file)
    assert seen == [1]
    assert not watched(module_file)


def test_the_hook_acts_now_on_an_imported_module(module_file):
    importlib.import_module(module_file)
    seen = []
    import_hook.after_import(module_file, lambda module: seen.append(module.value))
    assert seen == [1]


@pytest.fixture
def circle(tmp_path, monkeypatch):
    """A package whose modules a and b import each other; c is imported by nobody."""
    folder = tmp_path / "watched_circle"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("from watched_circle import b\nvalue = 'a'\n")
    (folder / "b.py").write_text("from watched_circle import a\nvalue = 'b'\n")
    (folder / "c.py").write_text("value = 'c'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "watched_circle"
    for name in [name for name in sys.modules if name.startswith("watched_circle")]:
        del sys.modules[name]


def test_the_hook_acts_when_a_circle_of_imports_is_closed(circle):
    """b's body is done before a's; only after the outermost import are both usable."""
    seen = []
    for name in "abc":
        import_hook.after_import(f"{circle}.{name}", lambda module: seen.append((module.value, "value" in dir(a()))))

    def a():
        return sys.modules[f"{circle}.a"]

    importlib.import_module(f"{circle}.a")
    assert sorted(seen) == [("a", True), ("b", True)] and watched(circle)
    importlib.import_module(f"{circle}.c")
    assert seen[2:] == [("c", True)] and not watched(circle)


def test_a_failed_import_is_waited_for_again(module_file, tmp_path):
    seen = []
    import_hook.after_import(module_file, lambda module: seen.append(module.value))
    (tmp_path / f"{module_file}.py").write_text("raise ImportError\n")
    with pytest.raises(ImportError):
        importlib.import_module(module_file)
    assert seen == [] and watched(module_file)
    (tmp_path / f"{module_file}.py").write_text("value = 22222\n")
    importlib.invalidate_caches()
    importlib.import_module(module_file)
    assert seen == [22222] and not watched(module_file)
