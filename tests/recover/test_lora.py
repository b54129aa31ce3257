"""LoRA on the factors: attaching changes nothing, merging is exact, the form and every other tensor stay."""

from collections import OrderedDict

import pytest
import torch
from tiny_models import save_factored

from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained
from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear
from nxdi_svd_plugin.recover import lora
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank, Side

TOKENS = torch.arange(2 * 11).view(2, 11) + 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("fixture", "rank"), [("tiny_svd_llama", 4), ("tiny_svd_qwen3", 7)])
def test_merge_equals_the_adapted_model(fixture, rank, request):
    peft = pytest.importorskip("peft")
    model = load_pretrained(request.getfixturevalue(fixture), torch.float32).eval()
    keys = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        start = model(TOKENS).logits
        trained = lora.attach(model, rank, 2.0 * rank, seeded())
        assert torch.allclose(model(TOKENS).logits, start, atol=1e-5)
        assert len(trained) == 8 * 2 * 2 and all(min(p.shape) == rank for p in trained.values())
        assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
        for i, parameter in enumerate(trained.values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(i)))
        pair = dict(lora.parts_of(model))["model.layers.0.mlp.up_proj"]
        a, b = pair.u[0].lora_A[lora.ADAPTER].weight, pair.u[0].lora_B[lora.ADAPTER].weight
        by_hand = pair.layer.u + 2.0 * (b @ a).T  # Eq. 9 with alpha / rank = 2
        adapted = model(TOKENS).logits
        lora.merge(model)
        merged = model(TOKENS).logits
    assert not (adapted - start).abs().max() < 0.1, "the adapters must matter for this test to mean anything"
    assert torch.allclose(merged, adapted, atol=2e-5 * float(adapted.abs().max()))
    assert torch.allclose(model.model.layers[0].mlp.up_proj.u, by_hand, atol=1e-6)
    after = model.state_dict()
    assert list(after) == list(keys) and not any(isinstance(m, peft.tuners.lora.LoraLayer) for m in model.modules())
    changed = {name for name in keys if not torch.equal(after[name], keys[name])}
    assert changed == {name for name in keys if name.endswith((".u", ".v"))}


def test_the_generator_decides_the_start(tiny_svd_llama):
    pytest.importorskip("peft")
    state = torch.random.get_rng_state()
    first, again, other = (
        lora.attach(load_pretrained(tiny_svd_llama, torch.float32), 3, 3.0, seeded(seed)) for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(not p.any() for name, p in first.items() if ".lora_B." in name)
    assert state.shape == torch.random.get_rng_state().shape


RUNS = ((1, 3), (7, 9))
FORMS = {
    "pair": (LowRank(4), 11),
    "interpolative": (LowRank(4, RUNS), 11),
    "grouped pair": (LowRank(6, groups=3), 12),
    "grouped": (LowRank(4, ((1, 2), (4, 5)), 2), 12),
}
CASES = [(form, side) for form in FORMS for side in Side]


def a_layer(form, side):
    """Hidden 6, and 11 or 12 neurons."""
    torch.manual_seed(0)
    stored, width = FORMS[form]
    return LowRankLinear(stored, side, 6, width)


@pytest.mark.parametrize(("form", "side"), CASES)
def test_linear_parts_are_the_same_function_on_the_same_memory(form, side):
    layer = a_layer(form, side)
    parts = lora.LinearParts(layer)
    near, far = layer.stored.names(side)
    assert [len(parts.linears(name)) for name in (near, far)] == [1, layer.stored.groups]
    for name, matrix in layer.named_parameters():
        pieces = parts.linears(name)
        assert pieces[0].weight.data_ptr() == matrix.data_ptr()
        assert sum(piece.weight.numel() for piece in pieces) == matrix.numel()
    x = torch.randn(3, layer.in_features, generator=seeded())
    assert torch.allclose(parts(x), layer(x), atol=1e-6)


@pytest.mark.parametrize(("form", "side"), CASES)
def test_what_is_stored_keeps_its_form(form, side):
    """After training and merging, kept neurons still pass through unchanged: the identity block is no parameter."""
    pytest.importorskip("peft")
    model = torch.nn.Sequential(OrderedDict(mlp=a_layer(form, side)))
    before = [p.detach().clone() for p in model.mlp.parameters()]
    x = torch.randn(5, model.mlp.in_features, generator=seeded(1))
    trained = lora.attach(model, 2, 2.0, seeded())
    assert len(trained) == 2 * (1 + FORMS[form][0].groups)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    adapted = model(x)
    lora.merge(model)
    layer = model.mlp
    assert losses[-1] < losses[0] and torch.allclose(model(x), adapted, atol=1e-6)
    assert isinstance(layer, LowRankLinear) and layer.stored == FORMS[form][0]
    assert all(not torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("side", Side)
def test_pivots_pass_through_after_training(side):
    pytest.importorskip("peft")
    model = torch.nn.Sequential(OrderedDict(mlp=a_layer("interpolative", side)))
    for i, parameter in enumerate(lora.attach(model, 2, 2.0, seeded()).values()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=seeded(i)))
    lora.merge(model)
    layer, pivots = model.mlp, [i for start, stop in RUNS for i in range(start, stop)]
    if side is Side.HIDDEN:
        x = torch.randn(5, 6, generator=seeded(1))
        assert torch.allclose(layer(x)[:, pivots], x @ layer.u, atol=1e-6)
    else:
        alone = torch.zeros(4, 11)
        alone[range(4), pivots] = 1
        assert torch.allclose(layer(alone), layer.v, atol=1e-6)


def test_a_dense_model_is_refused(tiny_llama):
    with pytest.raises(CheckpointError, match="no low-rank projection and dropped no neurons: compress it first"):
        lora.factor_parameters(load_model(tiny_llama, torch.float32))


def test_without_peft_the_pip_line_is_named(tiny_svd_llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match=r"nxdi-svd-plugin\[recovery\]"):
        lora.attach(torch.nn.Sequential(LowRankLinear(LowRank(2), Side.HIDDEN, 3, 3)), 2, 2.0, seeded())


def test_a_dense_down_that_was_fitted_again_is_trained_too(tiny_llama, tmp_path):
    """Layers 0 and 1 of 70 and 50 neurons beside the whole layer 2, all dense."""
    pytest.importorskip("peft")
    every = tuple((i, name) for i in range(3) for name in PROJECTIONS)
    directory = save_factored(tiny_llama, tmp_path / "narrow", 4, every, ((0, 70), (1, 50)))
    model = load_pretrained(directory, torch.float32).eval()
    downs = [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    assert list(lora.factor_parameters(model)) == downs
    keys = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        trained = lora.attach(model, 3, 6.0, seeded())
        assert len(trained) == 4
        for i, parameter in enumerate(trained.values()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(i)))
        adapted = model(TOKENS).logits
        lora.merge(model)
        merged = model(TOKENS).logits
    assert torch.allclose(merged, adapted, atol=2e-5 * float(adapted.abs().max()))
    after = model.state_dict()
    assert [name for name in keys if not torch.equal(after[name], keys[name])] == downs
