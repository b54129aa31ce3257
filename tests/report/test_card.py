"""The model card: metadata a hub can read, the numbers of the report, Meta's conditions, and recorded perplexities."""

import dataclasses
import json

import pytest
import yaml
from reports import EVALUATION, LOSSES, MEASURED, RECOVERY, TASKS, a_report, matrices, mixed

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.card import FORM_TEXTS, model_card, rank_summary, stored_text
from nxdi_svd_plugin.report.keep import keep
from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.record import Parameters, Report
from nxdi_svd_plugin.report.serving import serving
from nxdi_svd_plugin.report.source_card import llama_name, metadata_of
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, DENSE_FORM, FORMS, LowRank

PAIRS = [LowRank(256), LowRank(384), DENSE, LowRank(256), LowRank(128), LowRank(384)]
NAMES = ("gate_proj", "up_proj", "down_proj")
REPORT = a_report(
    source=dataclasses.replace(a_report().source, name="smollm2"),
    matrices=tuple(MatrixRecord(i // 3, NAMES[i % 3], 1536, form) for i, form in enumerate(PAIRS)),
)
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
        "with its MLP weights as pairs of thin matrices, y = x U V, by nxdi-svd-plugin",
        "12.3 % of the MLP parameters and 5.7 % of all parameters are gone",
        "wiki.txt, sha256 `" + "ab" * 32,
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


@pytest.fixture
def directory(tmp_path):
    REPORT.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "README.md").write_text(model_card(REPORT, CONFIG, "---\nlicense: mit\n---\n"))
    return tmp_path


def test_kept_perplexities_reach_report_and_card(directory):
    keep(directory, EVALUATION)
    card = (directory / "README.md").read_text()
    assert "| this model | 25.000 |" in card and "| dense base | 20.000 |" in card
    assert "On 4092 tokens of held.txt" in card and "not measured" not in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    base = dataclasses.replace(EVALUATION.base, model="dense")
    named = dataclasses.replace(EVALUATION, model="svd", base=base)
    assert Report.read(directory) == dataclasses.replace(REPORT, evaluation=named)


def test_each_kind_is_kept_in_its_own_place(directory):
    for measured in (TASKS, LOSSES, EVALUATION, LOSSES):
        keep(directory, measured)
    found = Report.read(directory)
    assert found.tasks == TASKS and found.layer_losses == LOSSES and found.evaluation.perplexity == 25.0


def test_recovery_is_told():
    card = model_card(dataclasses.replace(REPORT, recovery=RECOVERY), CONFIG)
    assert "lora, distillation, 200 steps of 4 windows of 512 tokens of alpaca.jsonl" in card
    assert "perplexity 30.500 before, 20.250 after" in card
    assert "factors were trained" in card and "factors were trained" not in model_card(REPORT, CONFIG)


def test_the_first_sentence_says_what_is_stored():
    card = model_card(a_report(matrices=mixed()), CONFIG)
    first = card.split("-SVD\n\n")[1].split(" are gone")[0]
    assert "in the interpolative form, which keeps r intermediate neurons" in first and "and as pairs" in first
    layers = REPORT.layers
    assert stored_text(layers) == "as pairs of thin matrices, y = x U V"
    assert stored_text({0: Mlp(8, DENSE, DENSE, DENSE)}) == "all dense"
    grouped = LowRank(4, groups=2)
    assert stored_text({0: Mlp(8, grouped, grouped, DENSE)}).endswith(", y = x U V, in 2 groups of neurons")


def test_the_card_has_words_for_every_form():
    assert {*FORM_TEXTS, DENSE_FORM} == set(FORMS)


def test_ranks_are_summed_up():
    assert rank_summary(REPORT) == "gate_proj 256, up_proj 128 to 384, down_proj 384 (1 dense)"
    dense = tuple(dataclasses.replace(m, projection=DENSE) for m in matrices(**MEASURED))
    assert rank_summary(a_report(matrices=dense)) == "gate_proj all dense, up_proj all dense, down_proj all dense"


def test_what_yaml_takes_for_other_than_text_stays_what_it_is():
    """Norwegian is `no`; to YAML 1.1 that is false."""
    found = metadata_of("---\nlanguage:\n- en\n- no\nlicense: mit\nlicense_name: null\nlicense_link: ~\n---\n")
    assert found == {"language": ["en", "no"], "license": "mit"}
    assert metadata_of("---\na: " + "[" * 9999 + "\n---\n") == {}


def test_the_licence_is_stated_even_when_there_is_none():
    assert "| licence | not stated by the source" in model_card(REPORT, CONFIG)
    llama = "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---\n"
    assert "| licence | llama3.2, as the base model (LICENSE.txt) |" in model_card(REPORT, CONFIG, llama)


@pytest.mark.parametrize("measured", [EVALUATION, TASKS, LOSSES])
def test_without_a_report_nothing_is_kept(tmp_path, measured):
    with pytest.raises(CheckpointError, match="has no report"):
        keep(tmp_path, measured)
    assert not list(tmp_path.iterdir())


def layers_with(width=1536, groups=1, **pivots):
    """One layer whose projections have these pivots; a pair where none are given."""
    forms = {}
    for name in ("gate", "up", "down"):
        runs = pivots.get(name, ())
        forms[name] = LowRank(groups * (sum(b - a for a, b in runs) or 256), runs, groups)
    return {0: Mlp(width, **forms)}


@pytest.mark.parametrize(
    ("layers", "impl", "tp", "why"),
    [
        (layers_with(), "svd_fused", 2, ""),
        (layers_with(1000), "svd_fused", 2, ""),
        (
            layers_with(gate=((0, 512),), up=((512, 1024),), down=((0, 512),)),
            *("svd_fused", 2, "at tensor-parallel degree 1 or 2 or 4, where"),
        ),
        (layers_with(gate=((0, 512),), up=((512, 640),)), "svd_fused", 1, "degree 1, where"),
        (
            layers_with(gate=((0, 512),), up=((512, 576),)),
            "svd",
            2,
            "cannot run this model (up_proj: at tp 1 ",
        ),
        (layers_with(groups=2), "svd_fused", 2, ""),
        (layers_with(groups=3), "svd_fused", 3, ""),
        (layers_with(groups=3, gate=((0, 64),), up=((64, 128),)), "svd", 3, "cannot run this model (gate_proj, up_pr"),
        (layers_with(groups=3, gate=((0, 128),), up=((128, 256),)), "svd_fused", 3, ""),
        (layers_with(groups=4, gate=((0, 128),), up=((128, 256),)), "svd_fused", 4, "degree 1 or 2 or 4, where"),
        ({0: Mlp(1536, DENSE, DENSE, DENSE)}, "svd", 2, "no projection of this model (gate_proj"),
    ],
)
def test_the_serving_advice_fits_the_stored_mlps(layers, impl, tp, why):
    advice = serving(layers)
    assert (advice.impl, advice.tp) == (impl, tp) and why in advice.why and bool(why) == bool(advice.why)


@pytest.mark.parametrize(
    ("groups", "share"), [(1, "0.9 M numbers at tp_degree 1, dense 1.0 M"), (2, "0.4 M numbers at")]
)
def test_what_a_core_holds_is_said(groups, share):
    stored = tuple(MatrixRecord(0, n, 1536, LowRank(64 * groups, (), groups)) for n in NAMES)
    report = a_report(matrices=stored, parameters=Parameters(1_000_000, 880_000, 2_000_000, 1_880_000))
    assert f"| MLP weights of one core | {share}" in model_card(report, CONFIG)
    assert f"MLP weights of one core: {share}" in report.to_text()


def test_the_serving_commands_follow_the_advice():
    runs = ((0, 512), (640, 704))
    forms = [LowRank(576, runs), LowRank(576, runs), LowRank(256)]
    card = model_card(
        a_report(matrices=tuple(MatrixRecord(0, n, 1536, f) for n, f in zip(NAMES, forms, strict=True))), CONFIG
    )
    assert "--mlp-impl svd --tp-degree 2 " in card and "--tensor-parallel-size 2 " in card
    assert '"mlp_impl": "svd"' in card and "The fused kernels cannot run this model (" in card
