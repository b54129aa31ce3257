"""compress() on tiny Llama and Qwen3 models against a dense reference computed here with transformers."""

import hashlib
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_dense
from transformers import AutoModelForCausalLM, AutoTokenizer

import nxdi_svd_plugin
from nxdi_svd_plugin.compress.calibrate.samples import tokenize, windows
from nxdi_svd_plugin.recipe import Calibration, Recipe
from nxdi_svd_plugin.stored.projection import PROJECTIONS
from nxdi_svd_plugin.texts import read_text

CALIBRATION = Calibration(samples=6, length=48)
FULL = dict.fromkeys(PROJECTIONS, 44)


def recipe(**changes):
    return Recipe(**{"block": 2, "ratio": 0.2, "calibration": CALIBRATION, **changes})


def snapshot(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir()) if p.is_file()}


def logits(directory):
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def dense(request):
    return request.getfixturevalue(f"tiny_{request.param}")


def test_full_rank_gives_the_dense_logits(dense, tmp_path):
    """At full rank u @ v is the weight up to float32 rounding."""
    report = nxdi_svd_plugin.compress(dense, tmp_path / "out", recipe(ratio=None, ranks=FULL))
    torch.testing.assert_close(logits(tmp_path / "out"), logits(dense), rtol=1e-3, atol=1e-4)
    assert max(r.relative_error for r in report.matrices) < 1e-6


def dense_activations(directory, samples):
    """(MLP input, projection inputs and outputs) of every layer, from one run of the whole dense model."""
    model, seen = AutoModelForCausalLM.from_pretrained(directory).eval(), {}
    for layer, block in enumerate(model.model.layers):
        for name in PROJECTIONS:

            def keep(_, inputs, output, key=(layer, name)):
                seen.setdefault(key, []).append(inputs[0][0].double())

            getattr(block.mlp, name).register_forward_hook(keep)
    with torch.no_grad():
        for ids in samples:
            model(ids[None])
    return {key: torch.cat(parts) for key, parts in seen.items()}


def test_reported_error_is_the_error_on_the_dense_models_activations(dense, tmp_path):
    """The layer-by-layer run sees what the whole model sees; the discarded spectrum is the measured output error."""
    report = nxdi_svd_plugin.compress(dense, tmp_path / "out", recipe())
    samples = windows(tokenize(dense, read_text("builtin"), CALIBRATION), CALIBRATION)
    inputs = dense_activations(dense, samples)
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for record in report.matrices:
        stem = f"model.layers.{record.layer}.mlp.{record.name}"
        x = inputs[record.layer, record.name]
        exact = x @ before[f"{stem}.weight"].double().T
        error = (exact - x @ after[f"{stem}.u"].double() @ after[f"{stem}.v"].double()).square().sum()
        assert record.discarded == pytest.approx(float(error), rel=1e-4)
        assert record.energy == pytest.approx(float(exact.square().sum()), rel=1e-4)


def test_everything_else_is_carried_over_as_it_was(dense, tmp_path):
    before = snapshot(dense)
    report = nxdi_svd_plugin.compress(dense, tmp_path / "out", recipe(dense=("1", "2.up_proj")))
    assert snapshot(dense) == before
    source, result = load_file(dense / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in source.items():
        factored = ".mlp." in name and ".layers.1." not in name and "2.mlp.up_proj" not in name
        assert (name in result) != factored
        assert factored or torch.equal(result[name], tensor)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (dense / name).read_bytes()
    assert not (tmp_path / "out" / ".unfinished").exists()
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    stored = sum(t.numel() for name, t in result.items() if ".mlp." in name)
    assert saved["parameters"]["mlp"] == stored
    assert saved["ratio"]["mlp"] == pytest.approx(1 - stored / saved["parameters"]["mlp_dense"])
    assert saved["files"] == {"model.safetensors": snapshot(tmp_path / "out")["model.safetensors"]}


def test_the_result_answers_as_the_dense_model_with_the_products_of_the_factors(dense, tmp_path):
    nxdi_svd_plugin.compress(dense, tmp_path / "out", recipe())
    reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float64).eval()
    stored, state = load_file(tmp_path / "out" / "model.safetensors"), reference.state_dict()
    for u in (name for name in stored if name.endswith("_proj.u")):
        v = u.removesuffix("u") + "v"
        state[u.removesuffix("u") + "weight"].copy_((stored[u].double() @ stored[v].double()).T)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("abc", return_tensors="pt")["input_ids"]
    model = nxdi_svd_plugin.load_pretrained(tmp_path / "out", dtype=torch.float64)
    # float64 sums of 90 terms in another order, three layers: some hundred times 2^-53 of logits below 10
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-12)
    expected, found = (m.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False) for m in (reference, model))
    assert found.shape == (1, ids.shape[1] + 8) and torch.equal(found, expected)


def test_the_model_card_takes_the_sources_licence(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "in")
    (tmp_path / "in" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    report = nxdi_svd_plugin.compress(tmp_path / "in", tmp_path / "out", recipe())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert report.calibration.sha256 in card
    assert f"{report.ratio.mlp:.4f}" in card


def test_a_whole_gguf_named_tokenizer_model_stays_behind(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "in")
    (tmp_path / "in" / "tokenizer.model").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "in" / "optimizer.pt").write_bytes(b"x")
    nxdi_svd_plugin.compress(tmp_path / "in", tmp_path / "out", recipe())
    assert not {"tokenizer.model", "optimizer.pt"} & {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_shards_and_dtypes(dtype, tmp_path):
    source = save_dense(tmp_path / "in", "llama", dtype=torch.bfloat16, shard="60KB")
    assert (source / "model.safetensors.index.json").exists()
    nxdi_svd_plugin.compress(source, tmp_path / "out", recipe(dtype=dtype, shard_size=50_000))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    tensors = {name: t for file in files for name, t in load_file(tmp_path / "out" / file).items()}
    assert set(tensors) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert tensors["model.layers.0.mlp.up_proj.u"].dtype == getattr(torch, dtype)
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    nxdi_svd_plugin.load_pretrained(tmp_path / "out")


def test_the_seed_chooses_the_windows_and_nothing_else_is_random(tiny_llama, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        changed = recipe(calibration=Calibration(samples=6, length=48, seed=seed))
        nxdi_svd_plugin.compress(tiny_llama, tmp_path / name, changed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_progress_is_plain_lines_without_a_terminal(tiny_llama, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nxdi_svd_plugin"):
        nxdi_svd_plugin.compress(tiny_llama, tmp_path / "out", recipe())
    lines = [record.message for record in caplog.records if record.name.endswith("progress")]
    assert len(lines) == 2 + 3 * 3  # embed and copy, then three steps a layer
    assert "forward 1 (6 of 11)" in lines[5] and "s left" in lines[5]


def test_long_rope_and_sliding_windows_are_the_models_own(tmp_path):
    """Llama 3's scaled rotary embedding reaches the one-layer model."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    source = save_dense(tmp_path / "in", "llama", rope_scaling=scaling)
    test_reported_error_is_the_error_on_the_dense_models_activations(source, tmp_path)
