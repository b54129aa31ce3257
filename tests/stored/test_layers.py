"""The svd_config object: round trip, and one clear error for each way it can be wrong."""

import copy

import pytest

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import Projection, layers_to_json, parse_layers, projection_dims, tensor_shapes

MIXED = {
    "gate_proj": Projection("factored", 4),
    "up_proj": Projection("interpolative", 6, ((0, 4), (8, 10))),
    "down_proj": Projection("dense"),
}
LAYERS = {i: dict(MIXED) for i in range(2)}
GOOD = {"format_version": 1, "layers": layers_to_json(LAYERS)}


def test_round_trip():
    assert parse_layers(GOOD, 2) == LAYERS


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 99, "Upgrade"),
        (("format_version",), None, "format_version None"),
        (("layers",), {}, "num_hidden_layers = 2"),
        (("layers", "2"), {}, "num_hidden_layers = 2"),
        (("layers", "1"), {"gate_proj": {"form": "dense"}}, "layer 1"),
        (("layers", "1", "gate_proj"), {"form": "magic", "rank": 3}, "'magic' is unknown"),
        (("layers", "1", "gate_proj"), {"form": "factored"}, "rank 0"),
        (("layers", "1", "gate_proj"), {"form": "dense", "rank": 3}, "rank 3"),
        (("layers", "1", "gate_proj"), {"form": "factored", "rank": "3"}, "layer 1 gate_proj"),
        (("layers", "1", "gate_proj"), {"form": "factored", "rank": 3, "pivots": [[0, 3]]}, "none otherwise"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3}, "as many neurons as the rank"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3, "pivots": [[2, 4], [0, 1]]}, "ascending"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3, "pivots": [[0, "3"]]}, "layer 1 gate_proj"),
    ],
)
def test_faults_are_named(path, value, message):
    bad = copy.deepcopy(GOOD)
    at = bad
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        parse_layers(bad, 2)


def test_shapes_follow_the_orientation_of_the_projection():
    assert projection_dims("gate_proj", 8, 32) == (8, 32)
    assert projection_dims("down_proj", 8, 32) == (32, 8)
    assert tensor_shapes(Projection("factored", 4), 8, 32) == {"u": (8, 4), "v": (4, 32)}
    pivots = Projection("interpolative", 4, ((0, 4),))
    assert tensor_shapes(pivots, 8, 32) == {"u": (8, 4), "c": (4, 28)}
    assert tensor_shapes(pivots, 32, 8) == {"c": (28, 4), "v": (4, 8)}
    assert tensor_shapes(Projection("dense"), 8, 32) == {"weight": (32, 8)}
