"""LowRankLinear against the matrices written out from the format, finite differences, and in a whole MLP."""

import numpy as np
import pytest
import torch
from torch import nn

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear, install_low_rank
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank, Side

HIDDEN, INTERMEDIATE = Side.HIDDEN, Side.INTERMEDIATE
# (H, w, stored): pairs and interpolative, odd sizes, H above w, one to eight groups
CASES = [
    (64, 128, LowRank(32)),
    (7, 11, LowRank(3)),
    (5, 3, LowRank(1)),
    (24, 64, LowRank(16, ((0, 8), (32, 40)))),
    (7, 13, LowRank(5, ((4, 9),))),
    (13, 7, LowRank(5, ((0, 5),))),
    (24, 64, LowRank(12, (), 4)),
    (24, 64, LowRank(16, ((1, 5),), 4)),
    (9, 26, LowRank(6, ((0, 2), (12, 13)), 2)),
    (9, 40, LowRank(24, ((0, 1), (2, 4)), 8)),
]


def matrix_of(layer, hidden, width):
    """The [H, w] matrix written out slice by slice in numpy, an independent reading of the format."""
    stored, parameters = layer.stored, {n: p.detach().numpy() for n, p in layer.named_parameters()}
    gate = layer.reads is HIDDEN
    near = parameters["u"] if gate else parameters["v"].T
    far_name = "c" if stored.pivots else "v" if gate else "u"
    far = parameters[far_name] if gate else parameters[far_name].T
    part, rank, whole = width // stored.groups, stored.rank // stored.groups, []
    kept = [i for a, b in stored.pivots for i in range(a, b)]
    others = [i for i in range(part) if i not in kept]
    for k in range(stored.groups):
        columns = np.zeros((rank, part))
        columns[range(len(kept)), kept] = 1
        columns[:, others] = far[:, k * len(others) : (k + 1) * len(others)]
        whole.append(near[:, k * rank : (k + 1) * rank] @ columns)
    return np.concatenate(whole, 1)


@pytest.mark.parametrize("reads", [HIDDEN, INTERMEDIATE], ids=["gate", "down"])
@pytest.mark.parametrize(("hidden", "width", "stored"), CASES)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_forward_is_the_matrix_it_stores(hidden, width, stored, reads, lead):
    torch.manual_seed(0)
    layer = LowRankLinear(stored, reads, hidden, width).double()
    x = torch.randn(*lead, layer.in_features, dtype=torch.float64)
    matrix = matrix_of(layer, hidden, width)
    expected = x.numpy() @ (matrix if reads is HIDDEN else matrix.T)
    # two products of at most 128 terms of magnitude about 1
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=128 * np.finfo(float).eps * 10)
    assert sum(p.numel() for p in layer.parameters()) == stored.parameters(hidden, width)


@pytest.mark.parametrize("stored", [LowRank(3), LowRank(4, ((0, 1),), 4), LowRank(4, ((2, 4), (5, 7)))])
@pytest.mark.parametrize("reads", [HIDDEN, INTERMEDIATE])
def test_gradients_match_finite_differences(stored, reads):
    torch.manual_seed(0)
    layer = LowRankLinear(stored, reads, 5, 8).double()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)

    def forward(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *layer.parameters()))


def test_a_new_layer_is_drawn_within_the_bounds_of_a_linear_layer():
    torch.manual_seed(0)
    layer = LowRankLinear(LowRank(100), HIDDEN, 400, 300)
    for factor, fan_in in ((layer.u, 400), (layer.v, 100)):
        bound = fan_in**-0.5
        # uniform: standard deviation bound/sqrt(3); 4 sigma of its estimate over 30000 draws is below 2 %
        assert factor.abs().max() <= bound and factor.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_no_gather_at_run_time():
    """The exported graph holds slices, concatenations and products only."""
    layer = LowRankLinear(LowRank(16, ((0, 8), (32, 40))), HIDDEN, 24, 64)
    graph = torch.export.export(layer, (torch.randn(2, 24),)).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "index" in name or "gather" in name], names


def dense_mlp(hidden, width):
    module = nn.Module()
    module.gate_proj, module.up_proj = (nn.Linear(hidden, width, bias=False) for _ in range(2))
    module.down_proj = nn.Linear(width, hidden, bias=False)
    return module


def test_install_mixes_the_forms_and_keeps_what_is_dense():
    mlps = {0: dense_mlp(6, 10), 1: dense_mlp(6, 10)}
    kept = mlps[0].down_proj
    layers = {
        0: Mlp(10, LowRank(4, ((2, 6),)), LowRank(3), DENSE),
        1: Mlp(8, DENSE, LowRank(4, (), 2), LowRank(2, ((0, 1),), 2)),
    }
    install_low_rank(mlps, layers, 6)
    assert mlps[0].down_proj is kept
    assert mlps[1].gate_proj.weight.shape == (8, 6)  # a narrower layer
    expected = "LowRankLinear(in_features={}, out_features={}, rank={}, form={}, groups={})"
    assert str(mlps[0].gate_proj) == expected.format(6, 10, 4, "interpolative", 1)
    assert str(mlps[1].down_proj) == expected.format(8, 6, 2, "interpolative", 2)
    assert str(mlps[1].up_proj) == expected.format(6, 8, 4, "pair", 2)


def test_pivots_beyond_the_width_are_refused():
    with pytest.raises(CheckpointError, match="inside the first 10 neurons"):
        LowRankLinear(LowRank(4, ((8, 12),)), HIDDEN, 6, 10)
