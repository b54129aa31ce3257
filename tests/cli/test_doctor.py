"""doctor: one JSON object, the support table, and each fault it must find, with package metadata faked."""

import importlib.metadata
import json

import pytest

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.cli import doctor, main
from nxdi_svd_plugin.errors import MissingExtraError

GOOD = {
    "nxdi-svd-plugin": ("0.1.0", ["torch>=2.5", "transformers<6,>=4.51", 'peft>=0.15; extra == "recovery"']),
    "transformers": ("4.57.6", ["huggingface-hub<1.0,>=0.34", 'tomli; python_version < "3.0"']),
    "torch": ("2.9.0", []),
    "huggingface-hub": ("0.36.2", []),
    "safetensors": ("0.8.0", []),
    "numpy": ("1.26.4", []),
    "ml_dtypes": ("0.5.0", []),
}


@pytest.fixture
def machine(monkeypatch):
    """Fake the installed distributions: {name: (version, requirements)}."""

    def install(distributions):
        def find(name):
            if name not in distributions:
                raise importlib.metadata.PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr(importlib.metadata, "version", lambda name: find(name)[0])
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: find(name)[1])
        monkeypatch.setattr(versions, "extras", lambda: ["recovery", "eval"])

    return install


def failures(findings):
    return [check["what"] for check in findings["core"] if not check["ok"]]


def test_a_good_machine_passes(machine):
    machine(GOOD)
    findings = doctor.examine()
    assert findings["ok"] and failures(findings) == []
    assert findings["works"]["compress, evaluate, generate"].startswith("yes")
    assert findings["works"]["kernels in the simulator"] == "yes"
    assert findings["extras"]["recovery"] == {
        "ok": False,
        "wrong": ["peft not installed (nxdi-svd-plugin needs peft>=0.15)"],
        "fix": 'pip install "nxdi-svd-plugin[recovery]"',
    }


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        # what `pip install lm-eval` does to a DLAMI venv
        ("huggingface-hub", "2.4.0", "huggingface-hub 2.4.0 (transformers needs huggingface-hub<1.0,>=0.34)"),
        ("transformers", "4.40.0", "transformers 4.40.0 (nxdi-svd-plugin needs transformers<6,>=4.51)"),
        ("torch", "2.1.0", "torch 2.1.0 (nxdi-svd-plugin needs torch>=2.5)"),
    ],
)
def test_a_wrong_version_fails(machine, name, version, message):
    machine({**GOOD, name: (version, GOOD[name][1])})
    findings = doctor.examine()
    assert not findings["ok"] and failures(findings) == [message]


def test_what_matters_comes_first(machine):
    machine({**GOOD, "torch": ("2.1.0", [])})
    lines = doctor.to_text(doctor.examine()).splitlines()
    assert lines[2:4] == ["what has to be mended", "  torch 2.1.0 (nxdi-svd-plugin needs torch>=2.5)"]
    assert lines.index("what works here") < lines.index("core") < lines.index("extras")
    machine(GOOD)
    assert doctor.to_text(doctor.examine()).splitlines()[2] == "what works here"


def test_running_from_a_source_tree_is_said(machine):
    machine({name: found for name, found in GOOD.items() if name != "nxdi-svd-plugin"})
    assert failures(doctor.examine()) == ["nxdi-svd-plugin is not installed: run `pip install .` in its source"]


@pytest.mark.parametrize(("numpy", "ok"), [("1.26.4", False), ("2.2.0", True)])
def test_pyarrow_24_needs_numpy_2(machine, numpy, ok):
    plugin = ("0.1.0", ['pyarrow; extra == "eval"'])
    machine({**GOOD, "nxdi-svd-plugin": plugin, "numpy": (numpy, []), "pyarrow": ("26.0.0", [])})
    assert doctor.examine()["extras"]["eval"]["ok"] is ok


def test_an_empty_extra_is_no_proof_of_what_it_is_for(machine, monkeypatch):
    """neuron and vllm require nothing of pip; they are there when the DLAMI's own packages are."""
    machine(GOOD)
    monkeypatch.setattr(versions, "extras", lambda: ["neuron", "vllm"])
    findings = doctor.examine()
    text = doctor.to_text(findings)
    for extra, name in (("neuron", "neuronx-distributed-inference"), ("vllm", "vllm")):
        absent = f"{name} not installed: it comes with the Neuron DLAMI, pip installs nothing for it"
        assert findings["extras"][extra] == {"ok": False, "wrong": [absent], "fix": ""}
        assert f"  none {extra}\n         {absent}\n" in text and "ok   vllm" not in text
    assert findings["ok"], "neither is a requirement"
    machine({**GOOD, "neuronx-distributed-inference": ("0.8.16251", []), "vllm": ("0.13.0", [])})
    monkeypatch.setattr(versions, "extras", lambda: ["neuron", "vllm"])
    assert all(check["ok"] for check in doctor.examine()["extras"].values())


@pytest.mark.parametrize(
    ("nxdi", "device", "message"),
    [
        (None, False, "no: neuronx-distributed-inference is not installed"),
        ("0.1.0", False, "no: version 0.1.0 is not one of 0.6 (SDK 2.26), 0.7 (SDK 2.27)"),
        ("0.8.16251", False, "on the CPU only, no Neuron device here: SDK 2.28, mlp_impl dense, svd"),
        ("0.8.16251", True, "yes: SDK 2.28, mlp_impl on trn1: dense, svd, svd_fused"),
        ("0.9.17334", True, "yes: SDK 2.29, mlp_impl on trn1: dense, svd"),
        ("0.10.17970", True, "untested: SDK 2.30; on trn1 mlp_impl dense, svd should run, svd_fused needs SDK 2.26 to"),
        ("0.10.18399+a1b2c3", False, "untested: SDK 2.31; on trn1 mlp_impl dense, svd should run"),
        ("0.10.20000", True, "no: version 0.10.20000 is not one of 0.6"),
        ("0.60.1", True, "no: version 0.60.1 is not one of"),
    ],
)
def test_where_the_user_stands_with_nxdi(machine, tmp_path, nxdi, device, message):
    machine(GOOD if nxdi is None else {**GOOD, "neuronx-distributed-inference": (nxdi, [])})
    if device:
        (tmp_path / "neuron0").touch()
    assert doctor.examine(tmp_path)["works"]["NxDI"].startswith(message)


def test_fused_kernels_end_with_sdk_2_28():
    assert [sdk.release for sdk in versions.SDKS if "svd_fused" in sdk.trn1] == ["2.26", "2.27", "2.28"]


def test_command_prints_the_table_and_json(capsys):
    codes = {main.main(["doctor"])}
    text = capsys.readouterr().out
    codes.add(main.main(["doctor", "--json"]))
    findings = json.loads(capsys.readouterr().out)
    assert codes == {0 if findings["ok"] else 1}
    for sdk in versions.SDKS:
        assert any(f"{line} ".startswith(f"  {sdk.release:<5}  {sdk.nxdi} ") for line in text.splitlines())


def test_import_extra_names_the_pip_line():
    assert versions.import_extra("json", "eval") is json
    with pytest.raises(MissingExtraError, match=r'pip install "nxdi-svd-plugin\[eval\]"'):
        versions.import_extra("a_package_that_is_not_there", "eval")
