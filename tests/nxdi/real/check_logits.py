"""Logits and tokens of the NxDI model with factors against transformers with the same factors."""

import json

import pytest
import ranks
import torch
from cpu_models import dense_reference, reference_logits, run_model
from safetensors.torch import load_file
from tiny_models import save_compressed, save_dense, save_factored

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.stored.projection import PROJECTIONS

PROMPT = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
STEPS = 6


@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tp1_equals_transformers(family, mlp_impl, request):
    directory = request.getfixturevalue(f"svd_{family}")
    [found] = ranks.run(1, run_model, family, directory, PROMPT, STEPS, adapter=True, mlp_impl=mlp_impl)
    expected = reference_logits(dense_reference(directory, family), found["tokens"], PROMPT.shape[1])
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
    assert found["generated"].tolist() == found["tokens"].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_parallel_enabled": True, "is_continuous_batching": True},
        {"fused_qkv": True, "vocab_parallel": True},
        {"rpl_reduce_dtype": torch.float64},
        {"enable_bucketing": True, "context_encoding_buckets": [48], "is_continuous_batching": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_tp2_equals_transformers(family, options, request):
    if family == "qwen3" and "fused_qkv" in options:
        pytest.skip("stock NxDI has no fused_qkv conversion for Qwen3")
    directory = request.getfixturevalue(f"svd_{family}")
    results = ranks.run(2, run_model, family, directory, PROMPT, STEPS, mlp_impl="svd", tp_degree=2, **options)
    expected = reference_logits(dense_reference(directory, family), results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("tp", [1, 2])
def test_an_odd_intermediate_size_is_padded(tp, tmp_path):
    """I = 99 does not divide by 2: the last rank gets one channel of zeros."""
    dense = save_dense(tmp_path / "dense", "llama", intermediate_size=99, vocab_size=260)
    directory = save_factored(dense, tmp_path / "svd", 20, ((1, "down_proj"), (2, "gate_proj"), (2, "up_proj")))
    results = ranks.run(tp, run_model, "llama", directory, PROMPT, STEPS, adapter=True, mlp_impl="svd", tp_degree=tp)
    expected = reference_logits(dense_reference(directory, "llama"), results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
        assert found["generated"].tolist() == found["tokens"].tolist()


def save_interpolative(dense, directory, pivots, widths=(), groups=1, pairs=()):
    """Every projection in `pivots` kept at those neurons of every group, the others random combinations of the group's;
    those in `pairs` random pairs; the rest dense.

    widths: (layer, neurons that it keeps).
    """
    config = json.loads((dense / "config.json").read_text())
    kept = dict.fromkeys(range(config["num_hidden_layers"]), config["intermediate_size"]) | dict(widths)
    return save_layers(dense, directory, [(width, pivots, pairs) for width in kept.values()], groups)


def save_layers(dense, directory, kinds, groups=1):
    """The same with a width, pivots and pairs for every layer."""
    tensors, generator = load_file(dense / "model.safetensors"), torch.Generator().manual_seed(1)
    layers = {i: {"width": width} for i, (width, _, _) in enumerate(kinds)}
    for i, (width, pivots, pairs) in enumerate(kinds):
        for name in PROJECTIONS:
            stem, down = f"model.layers.{i}.mlp.{name}", name == "down_proj"
            weight = tensors.pop(f"{stem}.weight")
            weight = weight[:, :width] if down else weight[:width]
            if name in pairs:
                rank, (outputs, inputs) = 40 * groups, weight.shape
                tensors[f"{stem}.u"] = torch.randn(inputs, 40 if down else rank, generator=generator) * inputs**-0.5
                tensors[f"{stem}.v"] = torch.randn(rank if down else 40, outputs, generator=generator) * rank**-0.5
                layers[i][name] = {"form": "pair", "rank": rank}
                continue
            if name not in pivots:
                tensors[f"{stem}.weight"] = weight.contiguous()
                layers[i][name] = {"form": "dense"}
                continue
            kept = torch.cat([torch.arange(start, stop) for start, stop in pivots[name]])
            combinations = len(kept) ** -0.5 * torch.randn(len(kept), width - groups * len(kept), generator=generator)
            kept = torch.cat([kept + k * (width // groups) for k in range(groups)])
            layers[i][name] = {"form": "interpolative", "rank": len(kept), "pivots": pivots[name]}
            if down:
                tensors[f"{stem}.c"], tensors[f"{stem}.v"] = combinations.T.contiguous(), weight[:, kept].T.contiguous()
            else:
                tensors[f"{stem}.u"], tensors[f"{stem}.c"] = weight[kept].T.contiguous(), combinations
    return save_compressed(dense, directory, tensors, layers, groups)


WIDTHS = ((0, 77), (1, 50))
"""Neurons that these layers keep of 90: odd, and even."""


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_that_keep_fewer_neurons(family, tp, request, tmp_path):
    """Pairs and dense projections of three widths, against the dense model with zeros for the dropped neurons."""
    dense = request.getfixturevalue(f"svd_{family}").parent / "dense"
    kept = ((0, "gate_proj"), (1, "down_proj"))
    directory = save_factored(dense, tmp_path / "svd", 20, kept, WIDTHS)
    results = ranks.run(tp, run_model, family, directory, PROMPT, STEPS, mlp_impl="svd", tp_degree=tp)
    expected = reference_logits(dense_reference(directory, family), results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(
    ("pivots", "widths"),
    [
        (dict.fromkeys(PROJECTIONS, ((0, 10), (80, 90))), ()),
        (dict.fromkeys(PROJECTIONS, ((0, 10), (30, 40))), ((0, 76), (1, 50))),
        ({"gate_proj": ((10, 20),), "down_proj": ((16, 40),)}, ((2, 48),)),
    ],
    ids=["whole", "narrow", "narrow_and_dense"],
)
def test_the_interpolative_form_equals_the_transformers_class(tp, pivots, widths, svd_llama, tmp_path):
    directory = save_interpolative(svd_llama.parent / "dense", tmp_path / "interpolative", pivots, widths)
    results = ranks.run(tp, run_model, "llama", directory, PROMPT, STEPS, mlp_impl="svd", tp_degree=tp)
    reference = load_pretrained(directory, dtype=torch.float32)
    expected = reference_logits(reference, results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())
