"""Sums of one layer against outer products, their accessors, and a file that comes back as means."""

import math

import pytest
import torch

from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.statistics import SQUARES, Statistics, statistics_shapes
from nxdi_svd_plugin.factorize.panels import PANEL

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


@pytest.mark.parametrize(("count", "side"), [(1, 44), (2, 44), (3, 30), (9, 10)])
def test_every_projection_has_its_sides(count, side):
    """Of 44 x 90: the hidden side is the smaller one of 90 and 45 neurons, not of 30 and 10."""
    groups = Groups(count, 44, 90)
    assert (groups.side, groups.narrow) == (side, side < 44)
    shapes = statistics_shapes(groups, "two_sided")
    sums = {
        name: i + torch.arange(float(math.prod(shape))).reshape(shape) for i, (name, shape) in enumerate(shapes.items())
    }
    found = Statistics(sums)
    assert found.near("gate_proj") is found.near("up_proj") is sums["inputs"]
    assert found.near("down_proj") is sums["down_gradients"] and sums["inputs"].shape == (44, 44)
    for name, far, squares in zip(
        ("gate_proj", "up_proj", "down_proj"),
        ("gate_gradients", "up_gradients", "outputs"),
        SQUARES.values(),
        strict=True,
    ):
        assert sums[far].shape == (count, side, side) and (squares in sums) is not groups.narrow
        for k, neurons in enumerate(groups.slices()):
            assert torch.equal(found.far(name, k), sums[far][k])
            if not groups.narrow:
                assert found.far_trace(name, neurons) == pytest.approx(float(sums[squares][neurons].double().mean()))
    with pytest.raises(KeyError):
        found.near("q_proj")


def test_sums_of_all_processes_become_means():
    sums = Statistics({"inputs": torch.eye(3, dtype=torch.float64) * 12, "outputs": torch.ones(1, 3, 3).double()})
    means = sums.total(lambda tensor: 2 * tensor).per_token(8)
    assert set(means.sums) == set(sums.sums)
    assert torch.equal(means.inputs, torch.eye(3, dtype=torch.float64) * 3)
    assert torch.equal(means.far("down_proj", 0), torch.full((3, 3), 0.25, dtype=torch.float64))


def test_float32_sums_are_whole_once_mirrored():
    """Wider than a panel, of two groups: only what is on and below the diagonal is summed until then."""
    x = torch.randn(2, 6, PANEL + 9, generator=torch.Generator().manual_seed(2))
    found = Statistics.zero({"outputs": (2, PANEL + 9, PANEL + 9), "gate_squares": (3,)}, CPU)
    for group, part in enumerate(x):
        found.add("outputs", part, group)
    found.mirror()
    wanted = x.double().mT @ x.double()
    assert torch.equal(found.sums["outputs"], found.sums["outputs"].mT)
    torch.testing.assert_close(found.sums["outputs"], wanted, rtol=0, atol=6 * 2.0**-24 * float(wanted.max()))
