"""The simulated kernels on layers that dropped neurons, as `compress` stores them, against transformers in float64."""

import numpy as np
import pytest
import torch
from kernel_cases import assert_close, matrix
from safetensors.torch import load_file
from tiny_models import save_dense

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.kernels import down, pack, reference, up_gate
from nxdi_svd_plugin.modeling.load import load_pretrained
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.simulator import simulate

NEURONS, GROUPS, RANKS = 168, 2, {"gate_proj": 48, "up_proj": 32, "down_proj": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pairs in two groups; what the budget leaves decides the widths alone."""
    folder = tmp_path_factory.mktemp("dropped")
    dense = save_dense(folder / "dense", "llama", intermediate_size=NEURONS, num_hidden_layers=2)
    recipe = {"drop": True, "tp_degree": GROUPS, "block": 8, "form": "pair", "ranks": RANKS, "ratio": 0.5}
    compress(dense, folder / "made", from_dict({**recipe, "calibration": {"samples": 2, "length": 40}}), progress=False)
    return folder / "made"


def factors_of(tensors, layer, name):
    """[(u, v) of each group], as numpy: the ranks of u and the neurons of both are the groups' one after the other."""
    u, v = (tensors[f"model.layers.{layer}.mlp.{name}.{part}"].numpy() for part in "uv")
    if name == "down_proj":
        return list(zip(np.split(u, GROUPS, 0), np.split(v, GROUPS, 0), strict=True))
    return list(zip(np.split(u, GROUPS, 1), np.split(v, GROUPS, 1), strict=True))


@pytest.mark.parametrize("tokens", [1, 150])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_mlp_of_a_narrower_layer(layer, tokens, made):
    model = load_pretrained(made, dtype=torch.float64)
    tensors = load_file(made / "model.safetensors")
    gate, up, lower = (factors_of(tensors, layer, name) for name in RANKS)
    assert gate[0][1].shape[1] == lower[0][0].shape[0] < NEURONS // GROUPS
    x = matrix(np.random.default_rng(layer), tokens, 44, np.float32)
    packed = [[*pack(*g, "up_gate"), *pack(*u, "up_gate")] for g, u in zip(gate, up, strict=True)]
    hs, _ = simulate(up_gate, x, *map(list, zip(*packed, strict=True)), aws_style=True)
    y, _ = simulate(down, list(hs), *map(list, zip(*(pack(*d, "down") for d in lower), strict=True)), aws_style=True)
    with torch.no_grad():
        truth = model.model.layers[layer].mlp(torch.from_numpy(x).double()).numpy()
    plain = (reference.mlp(x, *g, *u, *d, dtype=np.float32) for g, u, d in zip(gate, up, lower, strict=True))
    assert_close(y, truth, sum(plain))
