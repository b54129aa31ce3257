"""A model in a Hugging Face cache: links to blobs, under a commit's hash; its name, licence and notices are found."""

import json

import pytest
import yaml

from nxdi_svd_plugin.checkpoint.names import model_name
from nxdi_svd_plugin.cli.main import main

COMMIT = "4e20de362430cd3b72f300e6b0f18e50e7166e08"
CARD = "---\nlicense: llama3.2\nlanguage:\n- en\n---\n# a model\n"
TERMS = {
    "LICENSE.txt": "the licence",
    "USE_POLICY.md": "the policy",
    "notice": "a notice",
    "LICENSED_DATA.bin": "no terms",
    "original_params.json": "{}",
}


@pytest.fixture
def snapshot(tiny_llama, tmp_path):
    """snapshots/<commit> of meta-llama/Llama-3.2-1B: every file is a link into blobs/."""
    repository = tmp_path / "hub" / "models--meta-llama--Llama-3.2-1B"
    directory, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    directory.mkdir(parents=True)
    blobs.mkdir()
    texts = {name: text.encode() for name, text in {**TERMS, "README.md": CARD}.items()}
    for name, content in {**texts, **{path.name: path.read_bytes() for path in tiny_llama.iterdir()}}.items():
        blob = blobs / f"{len(list(blobs.iterdir())):040x}"
        blob.write_bytes(content)
        (directory / name).symlink_to(blob)
    return directory


@pytest.mark.parametrize("place", ["the snapshot", "a link to it"])
def test_a_snapshot_is_compressed_under_its_own_name(place, snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(snapshot)
    model = str(snapshot) if place == "the snapshot" else "link"
    argv = ["--block", "2", "--ratio", "0.2", "--samples", "2", "--length", "32"]
    assert main(["plan", model, *argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "meta-llama/Llama-3.2-1B"
    assert main(["compress", model, "--output", "out", *argv, "--quiet"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    meta = yaml.safe_load(card.split("---")[1])
    assert meta["base_model"] == "meta-llama/Llama-3.2-1B" and meta["license"] == "llama3.2"
    assert "\n# Llama-3.2-1B-SVD\n" in card and COMMIT not in card and "Built with Llama" in card
    assert json.loads((tmp_path / "out" / "report.json").read_text())["source"]["name"] == "meta-llama/Llama-3.2-1B"
    kept = {name for name in TERMS if (tmp_path / "out" / name).is_file()}
    assert kept == {"LICENSE.txt", "USE_POLICY.md", "notice"}
    assert (tmp_path / "out" / "notice").read_text() == "a notice" and not (tmp_path / "out" / "notice").is_symlink()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hub/models--org--name/snapshots/abc", "org/name"),
        ("hub/models--gpt2/snapshots/abc", "gpt2"),
        ("hub/models--org--name/other/abc", "abc"),
        ("snapshots/abc", "abc"),
        ("models/Llama-3.2-1B", "Llama-3.2-1B"),
    ],
)
def test_names_of_directories(path, name, tmp_path):
    assert model_name(tmp_path / path) == name


@pytest.mark.parametrize("command", ["plan", "compress --output out", "evaluate", "verify", "inspect"])
def test_the_name_of_a_model_on_the_hub_is_not_a_directory(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--model", "meta-llama/Llama-3.2-1B"]) == 1
    said = "`hf download meta-llama/Llama-3.2-1B --local-dir Llama-3.2-1B`"
    assert said in capsys.readouterr().err
    for path in ("models/a/b", "/a/b", "../b", "name"):
        assert main([*command.split(), "--model", path]) == 1
        assert "hf download" not in capsys.readouterr().err
