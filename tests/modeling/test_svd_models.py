"""The compressed classes against the dense ones: identity, orientation, saving, generation, gradients, config."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from tiny_models import SHAPE, factor, save_dense, save_factored
from transformers import AutoConfig, AutoModelForCausalLM

import nxdi_svd_plugin
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.configs import SvdLlamaConfig, SvdQwen3Config
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.models import SvdLlamaForCausalLM

FAMILIES = ("llama", "qwen3")
TOKENS = torch.arange(3, 43).reshape(2, 20)
# Logits up to 6, sums of at most 90 terms, three layers: 6 * 90 * 3 * eps = 3.6e-13; a wrong factor moves them by 0.1.
CLOSE_FP64 = {"rtol": 0, "atol": 1e-11}


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture(scope="module", params=FAMILIES)
def dense64(request, tmp_path_factory):
    """A dense float64 directory, so that factoring costs no precision that the comparison would have to allow for."""
    return save_dense(tmp_path_factory.mktemp("d") / request.param, request.param, dtype=torch.float64)


@pytest.fixture(params=FAMILIES)
def svd_dir(request):
    return request.getfixturevalue(f"tiny_svd_{request.param}")


def test_full_rank_is_the_dense_model(dense64, tmp_path):
    full = save_factored(dense64, tmp_path / "full", min(SHAPE["hidden_size"], SHAPE["intermediate_size"]))
    torch.testing.assert_close(logits(nxdi_svd_plugin.load_pretrained(full)), logits(load_model(dense64)), **CLOSE_FP64)


def test_truncated_is_the_dense_model_with_the_product_of_the_factors(dense64, tmp_path):
    kept = ((0, "gate_proj"), (2, "down_proj"))
    model = nxdi_svd_plugin.load_pretrained(save_factored(dense64, tmp_path / "svd", 9, kept))
    dense = load_model(dense64)
    untouched = logits(dense)
    for i, layer in enumerate(model.model.layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            projection = getattr(layer.mlp, name)
            assert hasattr(projection, "u") == ((i, name) not in kept)
            if hasattr(projection, "u"):
                getattr(dense.model.layers[i].mlp, name).weight.data = (projection.u @ projection.v).T
    torch.testing.assert_close(logits(model), logits(dense), **CLOSE_FP64)
    assert (logits(model) - untouched).abs().max() > 0.1  # rank 9 of 44 does change the answer


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_groups_are_the_dense_model_with_every_slice_factored_on_its_own(groups, dense64, tmp_path):
    """Each slice has rank 3; a layer keeps fewer neurons, a projection is dense."""
    widths = {i: SHAPE["intermediate_size"] // groups * groups - (4 * groups if i == 2 else 0) for i in range(3)}
    kept = ((1, "up_proj"),)
    directory = save_factored(dense64, tmp_path / "svd", 3 * groups, kept, tuple(widths.items()), groups)
    model, dense = nxdi_svd_plugin.load_pretrained(directory), load_model(dense64)
    for i, width in widths.items():
        mlp = dense.model.layers[i].mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = getattr(mlp, name).weight.data
            weight = weight.T if name == "down_proj" else weight  # [neurons, hidden], a view
            weight[width:] = 0
            for start in range(0, width, width // groups) if (i, name) not in kept else ():
                u, v = factor(weight[start : start + width // groups], 3)
                weight[start : start + width // groups] = (u @ v).T
    assert model.config.svd_config["groups"] == groups
    torch.testing.assert_close(logits(model), logits(dense), **CLOSE_FP64)


def test_layers_that_keep_fewer_neurons_are_the_dense_model_without_the_others(dense64, tmp_path):
    """Pairs of full rank and dense projections; SiLU(0) * 0 = 0, so a dropped neuron is one with zero weights."""
    kept, widths = ((0, "gate_proj"), (1, "down_proj")), {0: 77, 2: 50}
    model = nxdi_svd_plugin.load_pretrained(save_factored(dense64, tmp_path / "svd", 44, kept, tuple(widths.items())))
    dense = load_model(dense64)
    for i, width in widths.items():
        mlp = dense.model.layers[i].mlp
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            weight.data[width:] = 0
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (77, SHAPE["hidden_size"])
    torch.testing.assert_close(logits(model), logits(dense), **CLOSE_FP64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_save_and_reload_gives_the_same_bits(svd_dir, tmp_path, dtype, shard):
    model = nxdi_svd_plugin.load_pretrained(svd_dir, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path / "again", max_shard_size=shard)
    again = nxdi_svd_plugin.load_pretrained(tmp_path / "again")
    assert again.dtype == dtype
    assert torch.equal(logits(model), logits(again))
    assert again.config.svd_config == model.config.svd_config
    assert again.config.architectures == [type(model).__name__]
    assert len(list((tmp_path / "again").glob("*.safetensors"))) == 1 or shard == "30KB"


def test_names_and_shapes_on_disk_are_those_of_the_format(svd_dir, tmp_path):
    nxdi_svd_plugin.load_pretrained(svd_dir).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        shapes = {name: saved.get_slice(name).get_shape() for name in saved.keys()}  # noqa: SIM118
    assert shapes["model.layers.0.mlp.gate_proj.u"] == [44, 20]
    assert shapes["model.layers.0.mlp.gate_proj.v"] == [20, 90]
    assert shapes["model.layers.2.mlp.down_proj.u"] == [90, 20]
    assert shapes["model.layers.2.mlp.down_proj.v"] == [20, 44]
    assert shapes["model.layers.1.mlp.down_proj.weight"] == [44, 90]


def test_tied_embeddings_stay_tied(tiny_svd_qwen3, tiny_svd_llama):
    tied, untied = map(nxdi_svd_plugin.load_pretrained, (tiny_svd_qwen3, tiny_svd_llama))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_generate_with_the_cache_equals_argmax_without(svd_dir):
    model = AutoModelForCausalLM.from_pretrained(svd_dir)
    tokens = TOKENS[:1]
    for _ in range(6):
        tokens = torch.cat([tokens, logits(model, tokens)[:, -1:].argmax(-1)], dim=1)
    generated = model.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, tokens)


def test_gradients_reach_every_factor(svd_dir):
    model = nxdi_svd_plugin.load_pretrained(svd_dir, dtype=torch.float32)
    model(TOKENS, labels=TOKENS).loss.backward()
    factors = {name: p for name, p in model.named_parameters() if name.endswith((".u", ".v"))}
    assert len(factors) == 2 * (3 * 3 - 1)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in factors.values())


def test_config_survives_copies_and_json(svd_dir):
    config = AutoConfig.from_pretrained(svd_dir)
    raw = json.loads((svd_dir / "config.json").read_text())["svd_config"]
    duplicate = copy.deepcopy(config)
    assert duplicate.svd_config == raw and duplicate.svd_config is not config.svd_config
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True))).svd_config == raw
    assert json.loads(config.to_json_string())["svd_config"] == raw
    assert config.model_type.startswith("svd_")


@pytest.mark.parametrize("config_class", [SvdLlamaConfig, SvdQwen3Config])
def test_a_config_has_a_default_as_transformers_asks(config_class):
    assert config_class().to_dict()["model_type"] == config_class.model_type


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"svd_config": None}, "needs the object svd_config, found None"),
        ({"svd_config": {"format_version": 99}}, "Upgrade nxdi-svd-plugin"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2"),
        ({"mlp_bias": True}, "mlp_bias is true"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tiny_svd_llama, change, message):
    config = AutoConfig.from_pretrained(tiny_svd_llama)
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(CheckpointError, match=message):
        SvdLlamaForCausalLM(config)


def test_a_new_model_from_a_config_is_initialised(tiny_svd_llama):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_svd_llama))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(logits(model)).all()
