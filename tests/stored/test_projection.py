"""One stored projection: shapes and names of every form on both sides, and what does not fit."""

import numpy as np
import pytest

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.projection import DENSE, READS, LowRank, Side

GATE, DOWN = READS["gate_proj"], READS["down_proj"]
INTERPOLATIVE = LowRank(4, ((0, 4),))
GROUPED = LowRank(6, ((0, 1), (2, 3)), 3)


@pytest.mark.parametrize(
    ("stored", "reads", "expected"),
    [
        (LowRank(4), GATE, {"u": (8, 4), "v": (4, 33)}),
        (LowRank(4), DOWN, {"u": (33, 4), "v": (4, 8)}),
        (INTERPOLATIVE, GATE, {"u": (8, 4), "c": (4, 29)}),
        (INTERPOLATIVE, DOWN, {"c": (29, 4), "v": (4, 8)}),
        (GROUPED, GATE, {"u": (8, 6), "c": (2, 27)}),
        (GROUPED, DOWN, {"c": (27, 2), "v": (6, 8)}),
        (DENSE, GATE, {"weight": (33, 8)}),
        (DENSE, DOWN, {"weight": (8, 33)}),
    ],
)
def test_names_and_shapes_on_disk(stored, reads, expected):
    assert stored.tensors(reads, 8, 33) == expected
    assert list(stored.tensors(reads, 8, 33)) == list(expected)  # the order in which they multiply
    assert stored.parameters(8, 33) == sum(a * b for a, b in expected.values())


@pytest.mark.parametrize("reads", [GATE, DOWN])
@pytest.mark.parametrize("stored", [LowRank(4), INTERPOLATIVE, GROUPED])
def test_near_and_far_go_to_the_disk_and_back(stored, reads):
    near_shape, far_shape = stored.shapes(8, 33)
    near, far = np.random.rand(*near_shape), np.random.rand(*far_shape)
    disk = stored.to_disk(reads, near, far)
    assert {name: tensor.shape for name, tensor in disk.items()} == stored.tensors(reads, 8, 33)
    back = stored.from_disk(reads, disk)
    assert (back[0] == near).all() and (back[1] == far).all()


def test_the_side_is_a_value_and_does_not_follow_from_sizes():
    assert Side.HIDDEN.dims(40, 30) == (40, 30) and Side.INTERMEDIATE.dims(40, 30) == (30, 40)
    weight = np.zeros((30, 40))  # gate of H 40, w 30
    assert Side.HIDDEN.hidden_first(weight).shape == (40, 30) and weight.shape[Side.HIDDEN.weight_axis] == 30
    assert Side.INTERMEDIATE.hidden_first(weight.T).shape == (40, 30)
    assert LowRank(4, ((1, 5),)).tensors(Side.HIDDEN, 40, 30) == {"u": (40, 4), "c": (4, 26)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "rank 0"),
        ((5, (), 2), "that the groups divide"),
        ((4, (), 0), "0 groups"),
        ((4, ((0, 3),)), "of 4 neurons in all"),
        ((4, ((0, 4),), 2), "of 2 neurons in all"),
        ((4, ((2, 4), (0, 2))), "ascending"),
        ((4, ((0, 2), (2, 4))), "separate"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(CheckpointError, match=message):
        LowRank(*arguments)


def test_a_width_that_does_not_fit():
    with pytest.raises(CheckpointError, match="equal slices"):
        GROUPED.shapes(8, 32)
    with pytest.raises(CheckpointError, match="inside the first 3 neurons"):
        INTERPOLATIVE.shapes(8, 3)
