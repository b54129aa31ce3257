"""What `nxdi-svd compress` writes, in NxDI: one whole path from a dense directory to logits on two ranks."""

import copy

import pytest
import ranks
import torch
from check_kernels import decode, with_simulated_kernels
from cpu_models import dense_reference, reference_logits, run_model
from zero_heads import add_zero_heads

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.modeling.configs import layers_of
from nxdi_svd_plugin.stored.layers import parse_layers

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. "


def compress(source, target, *options):
    assert main(["compress", "--model", str(source), "--output", str(target), *options, "--quiet"]) == 0
    return target


def check(directory, reference, prompt, tp, tolerance):
    results = ranks.run(tp, run_model, "llama", directory, prompt, 6, mlp_impl="svd_fused", tp_degree=tp)
    expected = reference_logits(reference, results[0]["tokens"], prompt.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=tolerance * expected.abs().max())
        assert torch.equal(found["logits"].argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("form", ["pair", "interpolative"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_tiny_compressed_model(tp, form, svd_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 200)
    options = [
        "--form",
        form,
        "--ratio",
        "0.3",
        "--block",
        "4",
        "--calibration",
        str(text),
        "--samples",
        "8",
        "--length",
        "128",
    ]
    directory = compress(svd_llama.parent / "dense", tmp_path / "compressed", *options)
    reference = dense_reference(directory, "llama") if form == "pair" else load_pretrained(directory, torch.float32)
    check(directory, reference, torch.tensor([[5, 17, 201, 88, 3, 42, 9]]), tp, 2e-5)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("kind", ["mixed", "groups", "all_dense"])
def test_a_model_that_dropped_neurons(kind, tp, svd_llama, tmp_path):
    """Layers of unlike widths: interpolative and dense projections side by side; or a smaller dense MLP."""
    mixed = ["--rank", "0.gate_proj=16", "--rank", "1.down_proj=24", "--dense", "2", "--dense", "0.up_proj"]
    options = {
        "mixed": [*mixed, "--tp-degree", "1"],
        "groups": [*mixed, "--tp-degree", "2"],
        "all_dense": ["--dense", "gate_proj", "--dense", "up_proj", "--dense", "down_proj"],
    }[kind]
    options += ["--drop", "--ratio", "0.3", "--block", "4", "--samples", "8", "--length", "128"]
    directory = compress(svd_llama.parent / "dense", tmp_path / "compressed", *options)
    reference = load_pretrained(directory, torch.float32)
    layers = layers_of(reference.config)
    forms = {p.form for mlp in layers.values() for _, p in mlp.items()}
    assert forms == ({"dense"} if kind == "all_dense" else {"dense", "interpolative"})
    assert min(mlp.width for mlp in layers.values()) < reference.config.intermediate_size
    check(directory, reference, torch.tensor([[5, 17, 201, 88, 3, 42, 9]]), tp, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pair", "interpolative"])
def test_smollm2_compressed(form, smollm2, tmp_path):
    """Interpolative: the default recipe, so layers are reordered and some projections stay dense.

    Its pivots are whole tiles on one rank, which goes through the kernels too; on two ranks they are half tiles.
    """
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(smollm2)("The capital of France is", return_tensors="pt").input_ids
    dense = add_zero_heads(smollm2, tmp_path / "dense")
    options = ["--form", form, "--ratio", "0.1", "--block", "128", "--samples", "4", "--length", "128"]
    directory = compress(dense, tmp_path / "compressed", *options)
    if form == "pair":
        check(directory, dense_reference(directory, "llama"), prompt, 2, 1e-5)
        return
    reference = load_pretrained(directory, torch.float32)
    layers = parse_layers(reference.config.svd_config, 30, reference.config.intermediate_size)
    forms = {projection.form for mlp in layers.values() for _, projection in mlp.items()}
    assert forms == {"dense", "interpolative"} and (directory / "mlp_order.npy").is_file()
    for tp in (1, 2):
        [found, *_] = ranks.run(tp, run_model, "llama", directory, prompt, 6, mlp_impl="svd_fused", tp_degree=tp)
        assert_as_exact_as_transformers(found, reference, prompt)
    [(found, called)] = ranks.run(1, with_simulated_kernels, decode, "llama", directory, prompt, 2)
    assert_as_exact_as_transformers(found, reference, prompt)
    assert "mlp" in {name for name, _ in called} <= {"mlp", "up_gate", "down"}


def assert_as_exact_as_transformers(found, reference, prompt):
    """At most four times the error of transformers in float32, against transformers in float64."""
    single = reference_logits(reference, found["tokens"], prompt.shape[1])
    truth = reference_logits(copy.deepcopy(reference).double(), found["tokens"], prompt.shape[1])
    assert (found["logits"] - truth).abs().max() <= 4 * (single - truth).abs().max()
    assert torch.equal(found["logits"].argmax(-1), truth.argmax(-1))
