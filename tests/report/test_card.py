"""The model card: metadata a hub can read, the numbers of the report, Meta's conditions, and recorded perplexities."""

import json

import pytest
import yaml

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.card import llama_name, metadata_of, model_card, record_evaluation

REPORT = {
    "source": {"name": "smollm2", "model_type": "llama", "fingerprint": "f" * 64},
    "ratio": {"asked": 0.1, "target": "mlp", "mlp": 0.1234, "model": 0.0567},
    "matrices": [
        {"layer": layer, "projection": name, "form": form, "rank": rank}
        for layer, name, form, rank in [
            (0, "gate_proj", "factored", 256),
            (0, "up_proj", "factored", 384),
            (0, "down_proj", "dense", 0),
            (1, "gate_proj", "factored", 256),
            (1, "up_proj", "factored", 128),
            (1, "down_proj", "factored", 384),
        ]
    ],
    "calibration": {"text": "wiki.txt", "sha256": "a" * 64, "samples": 64, "length": 512, "tokens": 32768, "seed": 3},
    "versions": {"nxdi_svd_plugin": "0.1.0", "torch": "2.9.0"},
}
EVALUATION = {
    "perplexity": 12.3456,
    "tokens": 4092,
    "window": 1024,
    "stride": 1024,
    "dtype": "float32",
    "text": {"name": "held.txt", "sha256": "b" * 64},
    "model": "some/where/svd",
    "base": {"perplexity": 10.0, "model": "some/where/dense"},
}
CONFIG = {"model_type": "svd_llama"}


def test_metadata_and_numbers():
    card = model_card(REPORT, CONFIG, "---\nlicense: apache-2.0\nlanguage:\n- en\ntags: [x]\n---\n# SmolLM2\n")
    meta = metadata_of(card)
    assert meta["license"] == "apache-2.0" and meta["language"] == ["en"]
    assert meta["base_model"] == "smollm2" and meta["base_model_relation"] == "quantized"
    assert meta["library_name"] == "transformers" and "trainium" in meta["tags"] and "x" not in meta["tags"]
    for text in (
        "0.1 of the MLP parameters",
        "0.1234 of the MLP, 0.0567 of the model",
        "gate_proj 256, up_proj 128 to 384, down_proj 384 (1 dense)",
        "wiki.txt, sha256 `" + "a" * 64,
        "32768 in 64 samples, seed 3",
        "Perplexity was not measured",
        "nxdi_svd_plugin.load_pretrained",
        "--mlp-impl svd_fused",
        '{"override_neuron_config": {"mlp_impl": "svd_fused"}}',
    ):
        assert text in card, text
    assert "Built with Llama" not in card and "huggingface.co" not in card


def test_a_base_with_metas_licence_gets_its_notice_and_name():
    config = {**CONFIG, "_name_or_path": "meta-llama/Llama-3.2-1B"}
    card = model_card(REPORT, config, "---\nlicense: llama3.2\n---\n")
    assert "**Built with Llama.** Llama 3.2 is licensed under the Llama 3.2 Community License" in card
    assert "# Llama-3.2-1B-SVD" in card and "https://huggingface.co/meta-llama/Llama-3.2-1B" in card
    derived = model_card(REPORT, {**CONFIG, "_name_or_path": "someone/tuned"}, "---\nlicense: llama3.1\n---\n")
    assert "# Llama-tuned-SVD" in derived and "Llama 3.1 Community" in derived


@pytest.mark.parametrize(
    ("source", "base", "expected"),
    [
        ({"license": "llama3.1"}, "x", "Llama 3.1"),
        ({"license": "other", "license_name": "llama3"}, "x", "Llama 3"),
        ({}, "Meta-Llama-3.1-8B", "Llama 3.1"),
        ({}, "Llama-2-7b", "Llama 2"),
        ({"license": "apache-2.0"}, "Llama-3.2-like", ""),
        ({}, "Qwen3-1.7B", ""),
        ({}, "smollm2", ""),
    ],
)
def test_which_bases_have_metas_licence(source, base, expected):
    assert llama_name(source, base) == expected


@pytest.mark.parametrize(
    "card", ["", "# no front matter", "---\nnot closed", "---\n: [\n---\n", "---\njust text\n---\n"]
)
def test_a_card_without_metadata_gives_none(card):
    assert metadata_of(card) == {}


def test_recorded_perplexities_reach_report_and_card(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "README.md").write_text(model_card(REPORT, CONFIG, "---\nlicense: mit\n---\n"))
    record_evaluation(tmp_path, EVALUATION)
    card = (tmp_path / "README.md").read_text()
    assert "| this model | 12.346 |" in card and "| dense base | 10.000 |" in card
    assert "On 4092 tokens of held.txt" in card and "not measured" not in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    recorded = {**EVALUATION, "model": tmp_path.name, "base": {"perplexity": 10.0, "model": "dense"}}
    assert json.loads((tmp_path / "report.json").read_text()) == {**REPORT, "evaluation": recorded}


def test_recovery_is_told():
    recovery = {
        "settings": {"method": "lora", "steps": 200, "batch": 4, "window": 512, "seed": 5},
        "loss": "distillation",
        "data": {"text": "alpaca.jsonl", "sha256": "c" * 64},
        "perplexity": {"input": 30.5, "output": 20.25},
    }
    card = model_card({**REPORT, "recovery": recovery}, CONFIG)
    assert "lora, distillation, 200 steps of 4 windows of 512 tokens of alpaca.jsonl" in card
    assert "perplexity 30.500 before, 20.250 after" in card
    assert "factors were trained" in card and "factors were trained" not in model_card(REPORT, CONFIG)


def test_the_licence_is_stated_even_when_there_is_none():
    assert "| licence | not stated by the source" in model_card(REPORT, CONFIG)
    llama = "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---\n"
    assert "| licence | llama3.2, as the base model (LICENSE.txt) |" in model_card(REPORT, CONFIG, llama)


def test_recording_without_a_report_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no report"):
        record_evaluation(tmp_path, EVALUATION)


def with_pivots(**pivots):
    layer = {f"{name}_proj": {"form": "interpolative", "rank": 1, "pivots": runs} for name, runs in pivots.items()}
    return {**CONFIG, "intermediate_size": 1536, "svd_config": {"layers": {"0": layer}}}


@pytest.mark.parametrize(
    ("pivots", "impl", "tp", "sentence"),
    [
        ({"gate": [[0, 512]], "down": [[512, 1024]]}, "svd_fused", 2, "degree 1 or 2 or 4, where"),
        ({"gate": [[0, 512]], "up": [[512, 640]]}, "svd_fused", 1, "degree 1, where"),
        ({"gate": [[0, 512]], "up": [[512, 576]]}, "svd", 2, "cannot run this model"),
    ],
)
def test_the_serving_commands_fit_the_pivots(pivots, impl, tp, sentence):
    card = model_card(REPORT, with_pivots(**pivots))
    assert f"--mlp-impl {impl} --tp-degree {tp} " in card and f"--tensor-parallel-size {tp} " in card
    assert f'"mlp_impl": "{impl}"' in card and sentence in card
