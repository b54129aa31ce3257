"""The simulated kernels on a layer of SmolLM2 as `compress` stores it, against transformers in float64."""

import copy
import dataclasses

import ml_dtypes
import pytest
import torch
from kernel_cases import assert_close

from nxdi_svd_plugin.compress.calibrate.statistics import Statistics
from nxdi_svd_plugin.compress.factor.layer import factor_layer
from nxdi_svd_plugin.compress.factor.rounding import Bf16Results, stored_layer
from nxdi_svd_plugin.compress.factor.spectra import decompose, restore
from nxdi_svd_plugin.compress.forms import named
from nxdi_svd_plugin.evaluate.perplexity import token_ids
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.fused_xuv import xuv
from nxdi_svd_plugin.kernels.packing import from_kernel_order, pack
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recipe import Recipe
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import mlp_of
from nxdi_svd_plugin.stored.runs import length
from nxdi_svd_plugin.texts import HELDOUT, read_text

LAYER, BLOCK, WINDOW = 7, 128, 512  # two windows are more tokens than the hidden dimension of 576
RANKS = {"gate_proj": 384, "up_proj": 256, "down_proj": 512}
KERNELS = {"gate_proj": "up_gate", "up_proj": "up_gate", "down_proj": "down"}


@pytest.fixture(scope="module")
def dense(smollm2):
    """(MLP of the layer, what it reads on two windows of text [tokens, hidden])."""
    model = load_model(smollm2, torch.float32).eval().model
    model.layers, seen = model.layers[: LAYER + 1], []
    mlp = model.layers[LAYER].mlp
    hook = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(token_ids(load_tokenizer(smollm2), read_text(HELDOUT).content, 2 * WINDOW).view(2, WINDOW))
    hook.remove()
    return mlp, seen[0]


@pytest.fixture(scope="module", params=["pair", "interpolative"])
def stored(request, dense):
    """The layer's factors as they are written in bfloat16 (held in float64)."""
    mlp, x = dense
    weights = {name: getattr(mlp, name).weight.detach() for name in RANKS}
    with torch.no_grad():
        x, y = x.double(), mlp(x).double()
    recipe, form = Recipe(form=request.param, block=BLOCK), named(request.param)
    kept = decompose(recipe, Statistics({"inputs": x.T @ x, "outputs": (y.T @ y)[None]}), len(x), weights.items())
    decompositions = {name: restore(recipe, kept, len(x), name, w) for name, w in weights.items()}
    planned = mlp_of(len(weights["gate_proj"]), {name: form.planned(rank) for name, rank in RANKS.items()})
    made = factor_layer(weights.__getitem__, decompositions.__getitem__, planned, form, BLOCK)
    return dataclasses.replace(made, tensors={key: t.bfloat16().double() for key, t in made.tensors.items()})


def read_at(dense, tokens):
    """The activations of the last `tokens` tokens, in bfloat16 (held in float64)."""
    return dense[1][-tokens:].bfloat16().double()


def bf16(tensor):
    return tensor.float().numpy().astype(ml_dtypes.bfloat16)


def packed(made, name, kernel):
    """The two stored tensors of a projection in the kernel's layout."""
    first, second = (bf16(t) for key, t in made.tensors.items() if key.startswith(name))
    return pack(first, second, kernel, interpolative=bool(made.mlp[name].pivots))


@torch.no_grad()
def of_transformers(mlp, made, x):
    """{"gate_proj", "up_proj", "hidden", "y"}: what the model's own MLP makes of x with the stored projections."""
    mlp, found = copy.deepcopy(mlp), {}
    for name, projection in made.mlp.items():
        setattr(mlp, name, stored_layer(made, name, projection, x.shape[1]))
        getattr(mlp, name).register_forward_hook(lambda _, args, out, name=name: found.update({name: out}))
    mlp.down_proj.register_forward_pre_hook(lambda _, args: found.update(hidden=args[0]))
    return found | {"y": mlp(x)}


def truth_and_low(mlp, made, x):
    """`of_transformers` in float64, and with every result rounded to bfloat16."""
    single = dataclasses.replace(made, tensors={key: t.float() for key, t in made.tensors.items()})
    with Bf16Results():
        low = of_transformers(mlp, single, x.float())
    truth = of_transformers(mlp, made, x)
    return {key: t.numpy() for key, t in truth.items()}, {key: bf16(t) for key, t in low.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 150])
def test_the_mlp_of_a_stored_layer_on_real_activations(dense, stored, tokens):
    x = read_at(dense, tokens)
    truth, low = truth_and_low(dense[0], stored, x)
    interpolative, pivots = stored.mlp.gate.form == "interpolative", kernel_fit(stored.mlp, 1).pivots
    tiles = {name: length(runs) for name, runs in pivots.items()}
    assert tiles == {name: rank // 128 * interpolative for name, rank in RANKS.items()}
    gate, up, lower = (packed(stored, name, kernel) for name, kernel in KERNELS.items())
    h_t, _ = simulate(up_gate, bf16(x), *gate, *up, pivots=(pivots["gate_proj"], pivots["up_proj"]))
    assert_close((from_kernel_order(h_t) if interpolative else h_t).T, truth["hidden"], low["hidden"])
    y, _ = simulate(down, h_t, *lower, pivots=pivots["down_proj"])
    assert_close(y, truth["y"], low["y"])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 150])
@pytest.mark.parametrize("stored", ["pair"], indirect=True)
def test_xuv_is_a_stored_pair_on_real_activations(dense, stored, tokens):
    x = read_at(dense, tokens)
    truth, low = truth_and_low(dense[0], stored, x)
    for name in ("gate_proj", "up_proj"):
        y, _ = simulate(xuv, bf16(x), *packed(stored, name, "xuv"))
        assert_close(y, truth[name], low[name])
