"""peft's LoRA on compressed models, as somebody who has never heard of low-rank projections would write it."""

import warnings

import pytest
import torch

peft = pytest.importorskip("peft", reason="peft is not installed: pip install nxdi-svd-plugin[recovery]")

from nxdi_svd_plugin.errors import SvdError  # noqa: E402
from nxdi_svd_plugin.modeling.load import load_model  # noqa: E402
from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear  # noqa: E402

IDS = torch.tensor([[5, 17, 200, 33, 9, 120]])
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
EVERY = {f"model.layers.{i}.{name}" for i in range(3) for name in (*ATTENTION, *MLP)}


def adapted(directory, targets, **options):
    """A compressed model with adapters whose B is not zero."""
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=targets, r=3, lora_alpha=6, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(load_model(directory), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_adapters(model, adapter="default"):
    found = [name.split(f".lora_A.{adapter}.") for name, _ in model.named_parameters()]
    return {parts[0].removeprefix("base_model.model.") for parts in found if len(parts) == 2}


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ("all-linear", EVERY),
        (["up_proj", "down_proj"], {name for name in EVERY if "up_" in name or "down_" in name}),
        (r".*\.1\.mlp\..*_proj", {f"model.layers.1.{name}" for name in MLP}),
        (["q_proj"], {name for name in EVERY if "q_proj" in name}),
    ],
    ids=["all-linear", "names", "pattern", "attention"],
)
def test_targets_find_low_rank_projections(targets, found, tiny_svd_llama, tiny_svd_qwen3):
    for directory in (tiny_svd_llama, tiny_svd_qwen3):
        assert with_adapters(adapted(directory, targets)) == found


def test_peft_knows_the_layer(tiny_svd_llama):
    """The oldest versions of peft warn of every layer type that is not their own, without a way to answer."""
    with warnings.catch_warnings(record=True) as caught:
        adapted(tiny_svd_llama, ["up_proj"])
    answers = hasattr(peft.tuners.lora.LoraLayer, "_get_in_out_features")
    assert not answers or not [str(w.message) for w in caught if "Unsupported layer type" in str(w.message)]


def test_an_adapter_is_added_beside_the_factors(tiny_svd_llama):
    """y = x u v + alpha / r x A^T B^T, in float64 from the parameters."""
    layer = adapted(tiny_svd_llama, "all-linear").base_model.model.model.layers[0].mlp.up_proj
    u, v = (getattr(layer.base_layer, name).detach().double().numpy() for name in ("u", "v"))
    a, b = (getattr(layer, f"lora_{name}")["default"].weight.detach().double().numpy() for name in "AB")
    x = torch.randn(5, 44, generator=torch.Generator().manual_seed(0))
    expected = x.double().numpy() @ u @ v + 6 / 3 * x.double().numpy() @ a.T @ b.T
    assert abs(layer(x).detach().double().numpy() - expected).max() < 1e-5 * abs(expected).max()


def test_adapters_learn_and_factors_do_not(tiny_svd_llama):
    model = adapted(tiny_svd_llama, "all-linear")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained


def test_a_saved_adapter_is_loaded_onto_the_compressed_model_again(tiny_svd_llama, tmp_path):
    model = adapted(tiny_svd_llama, ["gate_proj", "v_proj"])
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_model(tiny_svd_llama), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        assert not torch.equal(again(IDS).logits, load_model(tiny_svd_llama)(IDS).logits)


def test_a_second_adapter_finds_the_same_modules(tiny_svd_llama):
    model = adapted(tiny_svd_llama, ["up_proj"])
    model.add_adapter("second", peft.LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM"))
    assert with_adapters(model, "second") == EVERY


def test_merging_is_refused_and_unloading_gives_the_model_back(tiny_svd_llama):
    model = adapted(tiny_svd_llama, ["up_proj"])
    with pytest.raises(SvdError, match="cannot be merged without a larger rank.*nxdi-svd recover"):
        model.merge_and_unload()
    back = adapted(tiny_svd_llama, ["up_proj"]).unload()
    assert isinstance(back.model.layers[0].mlp.up_proj, LowRankLinear)
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, load_model(tiny_svd_llama)(IDS).logits)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_what_begins_from_the_weight_is_refused_where_there_is_none(options, tiny_svd_llama):
    assert with_adapters(adapted(tiny_svd_llama, ["q_proj"], **options))
    with pytest.raises(SvdError, match="begins from the weight.*use plain LoRA"):
        adapted(tiny_svd_llama, ["q_proj", "up_proj"], **options)


def test_configs_of_other_models_stay_what_they_are(tiny_llama):
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model(tiny_llama), config)
    assert with_adapters(model) == EVERY and config._custom_modules is None
