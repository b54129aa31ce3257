"""FactoredLinear against numpy and against finite differences; what install_factors replaces."""

import numpy as np
import pytest
import torch
from torch import nn

from nxdi_svd_plugin.modeling.factored_linear import FactoredLinear, install_factors
from nxdi_svd_plugin.stored.layers import Projection


@pytest.mark.parametrize(("fan_in", "fan_out", "rank"), [(64, 128, 32), (7, 11, 3), (5, 3, 1)])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_forward_is_x_u_v(fan_in, fan_out, rank, lead):
    torch.manual_seed(0)
    layer = FactoredLinear(fan_in, fan_out, rank).double()
    x = torch.randn(*lead, fan_in, dtype=torch.float64)
    u, v = layer.u.detach().numpy(), layer.v.detach().numpy()
    assert u.shape == (fan_in, rank) and v.shape == (rank, fan_out)
    expected = np.einsum("...i,ir,ro->...o", x.numpy(), u, v)
    # two products of at most 64 terms of magnitude about 1
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=64 * np.finfo(float).eps * 10)


def test_gradients_match_finite_differences():
    torch.manual_seed(0)
    layer = FactoredLinear(5, 4, 3).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    def forward(x, u, v):
        return torch.func.functional_call(layer, {"u": u, "v": v}, (x,))

    assert torch.autograd.gradcheck(forward, (x, layer.u, layer.v))


def test_a_new_layer_is_drawn_within_the_bounds_of_a_linear_layer():
    torch.manual_seed(0)
    layer = FactoredLinear(400, 300, 100)
    for factor, fan_in in ((layer.u, 400), (layer.v, 100)):
        bound = fan_in**-0.5
        # uniform: standard deviation bound/sqrt(3); 4 sigma of its estimate over 30000 draws is below 2 %
        assert factor.abs().max() <= bound and factor.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_install_replaces_the_factored_projections_only():
    def mlp():
        module = nn.Module()
        module.gate_proj, module.up_proj = nn.Linear(6, 10, bias=False), nn.Linear(6, 10, bias=False)
        module.down_proj = nn.Linear(10, 6, bias=False)
        return module

    dense, factored = Projection("dense"), Projection("factored", 2)
    mlps = {0: mlp(), 1: mlp()}
    kept = mlps[0].down_proj, mlps[1].gate_proj
    install_factors(
        mlps,
        {
            0: {"gate_proj": factored, "up_proj": factored, "down_proj": dense},
            1: {"gate_proj": dense, "up_proj": factored, "down_proj": Projection("factored", 3)},
        },
    )
    assert (mlps[0].down_proj, mlps[1].gate_proj) == kept
    assert str(mlps[1].down_proj) == "FactoredLinear(in_features=10, out_features=6, rank=3)"
    assert str(mlps[0].up_proj) == "FactoredLinear(in_features=6, out_features=10, rank=2)"
