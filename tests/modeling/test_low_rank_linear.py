"""InterpolativeLinear against the plain factors it stands for, in both orientations, and in a whole MLP."""

import pytest
import torch
from torch import nn

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.factored_linear import FactoredLinear, install_factors
from nxdi_svd_plugin.modeling.low_rank_linear import InterpolativeLinear
from nxdi_svd_plugin.stored.layers import Projection, tensor_shapes
from nxdi_svd_plugin.stored.order import complement, indices

CASES = [(24, 64, ((0, 8), (32, 40))), (7, 13, ((4, 9),)), (64, 24, ((8, 24), (63, 64))), (13, 7, ((0, 5),))]


def matrix_of(layer):
    """The [in, out] matrix written out by indexing, an independent reading of the format."""
    width = max(layer.in_features, layer.out_features)
    kept, others = indices(layer.pivots), indices(complement(layer.pivots, width))
    full = torch.zeros(layer.in_features, layer.out_features, dtype=torch.float64)
    if layer.out_features > layer.in_features:
        full[:, kept], full[:, others] = layer.u, layer.u @ layer.c
    else:
        full[kept], full[others] = layer.v, layer.c @ layer.v
    return full


@pytest.mark.parametrize(("fan_in", "fan_out", "pivots"), CASES)
def test_forward_is_the_matrix_it_stores(fan_in, fan_out, pivots):
    torch.manual_seed(0)
    rank = sum(b - a for a, b in pivots)
    projection = Projection("interpolative", rank, pivots)
    layer = InterpolativeLinear(fan_in, fan_out, projection).double()
    x = torch.randn(2, 3, fan_in, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ matrix_of(layer), rtol=0, atol=1e-13)
    stored = sum(p.numel() for p in layer.parameters())
    assert stored == rank * (fan_in + fan_out - rank)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == tensor_shapes(projection, fan_in, fan_out)


def test_no_gather_at_run_time():
    """The exported graph holds slices, concatenations and products only."""
    layer = InterpolativeLinear(24, 64, Projection("interpolative", 16, ((0, 8), (32, 40))))
    graph = torch.export.export(layer, (torch.randn(2, 24),)).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "index" in name or "gather" in name], names


def test_install_mixes_the_forms():
    mlp = nn.Module()
    mlp.gate_proj, mlp.up_proj = nn.Linear(6, 10, bias=False), nn.Linear(6, 10, bias=False)
    mlp.down_proj = nn.Linear(10, 6, bias=False)
    forms = {
        "gate_proj": Projection("interpolative", 4, ((2, 6),)),
        "up_proj": Projection("factored", 3),
        "down_proj": Projection("interpolative", 2, ((0, 2),)),
    }
    install_factors({0: mlp}, {0: forms})
    assert isinstance(mlp.up_proj, FactoredLinear)
    for name in ("gate_proj", "down_proj"):
        layer = getattr(mlp, name)
        assert isinstance(layer, InterpolativeLinear) and layer.pivots == forms[name].pivots


def test_pivots_beyond_the_matrix_are_refused():
    with pytest.raises(CheckpointError, match="beyond 10 neurons"):
        InterpolativeLinear(6, 10, Projection("interpolative", 4, ((8, 12),)))
