"""Sums of one layer against outer products, their accessors, and a file that comes back as means."""

import pytest
import torch

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, statistics_shapes

CPU = torch.device("cpu")
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_over_all_tokens(dtype):
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = Statistics.zero({"inputs": (7, 7), "gate_squares": (7,)}, CPU)
    for part in (x[:1], x[1:]):
        found.add("inputs", part)
        found.add_squares("gate_squares", part)
    expected = sum(torch.outer(row, row) for row in x.double().reshape(-1, 7))
    assert found.inputs.dtype == torch.float64
    # 15 products of at most 7 x 7's largest, each rounded once and added in up to 15 steps
    bound = 2 * 15 * EPS[dtype] * float(x.double().square().sum((0, 1)).max())
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=bound)
    torch.testing.assert_close(found.sums["gate_squares"], expected.diagonal(), rtol=0, atol=bound)


def test_every_projection_has_its_sides(tiny_llama):
    shapes = statistics_shapes(read_config(tiny_llama), "two_sided")
    sums = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    found = Statistics(sums)
    for gate in ("gate", "up"):
        assert found.near(f"{gate}_proj") is sums["inputs"]
        assert found.projected(f"{gate}_proj") is sums[f"{gate}_gradients"]
        assert found.far_trace(f"{gate}_proj") == sums[f"{gate}_squares"][0]
    assert found.near("down_proj") is sums["down_gradients"] and found.projected("down_proj") is sums["outputs"]
    assert found.far_trace("down_proj") == sums["down_squares"][0]
    with pytest.raises(KeyError):
        found.near("q_proj")


def test_sums_of_all_processes_become_means():
    sums = Statistics({"inputs": torch.eye(3, dtype=torch.float64) * 12, "outputs": torch.ones(3, 3).double()})
    means = sums.total(lambda tensor: 2 * tensor).per_token(8)
    assert set(means.sums) == set(sums.sums)
    assert torch.equal(means.inputs, torch.eye(3, dtype=torch.float64) * 3)
    assert torch.equal(means.outputs, torch.full((3, 3), 0.25, dtype=torch.float64))
