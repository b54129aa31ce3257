"""The svd_config object: round trip, and one clear error for each way it can be wrong."""

import copy
import json

import pytest

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import Mlp, groups_of, layers_to_json, mlp_of, parse_layers
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

MIXED = Mlp(32, LowRank(4), LowRank(6, ((0, 4), (8, 10))), DENSE)
GROUPED = Mlp(30, LowRank(4, (), 2), LowRank(6, ((0, 1), (8, 10)), 2), DENSE)
GOOD = {"format_version": 2, **layers_to_json({0: MIXED, 1: MIXED})}


@pytest.mark.parametrize("mlp", [MIXED, GROUPED, Mlp(7, DENSE, DENSE, DENSE)])
def test_round_trip_through_json(mlp):
    layers = {0: mlp, 1: mlp}
    text = json.dumps({"format_version": 2, **layers_to_json(layers)}, sort_keys=True)
    assert parse_layers(json.loads(text), 2, 32) == layers


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 1, "make the directory again with `nxdi-svd compress`"),
        (("format_version",), 99, "Upgrade"),
        (("format_version",), None, "format_version None"),
        (("groups",), None, "groups None"),
        (("groups",), 3, "3 groups"),
        (("layers",), {}, "num_hidden_layers = 2"),
        (("layers", "2"), {}, "num_hidden_layers = 2"),
        (("layers", "1"), {"gate_proj": {"form": "dense"}}, "layer 1"),
        (("layers", "1", "width"), 33, "1 to the intermediate_size 32"),
        (("layers", "1", "width"), True, "width True"),
        (("layers", "1", "width"), 9, "inside the first 9"),
        (
            ("layers", "1", "gate_proj"),
            {"form": "magic", "rank": 3},
            "'magic' is unknown; this version reads dense, pa",
        ),
        (("layers", "1", "gate_proj"), {"form": ["pair"], "rank": 3}, "is unknown"),
        (("layers", "1", "gate_proj"), {"form": "pair"}, "expected the keys form, rank"),
        (("layers", "1", "gate_proj"), {"form": "dense", "rank": 3}, "no dense projection"),
        (("layers", "1", "gate_proj"), {"form": "pair", "rank": "3"}, "layer 1: rank '3'"),
        (("layers", "1", "gate_proj"), {"form": "pair", "rank": 0}, "rank 0"),
        (("layers", "1", "gate_proj"), {"form": "pair", "rank": 3, "pivots": [[0, 3]]}, "no pair projection"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3}, "no interpolative projection"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3, "pivots": [[0, 2]]}, "of 3 neurons in all"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3, "pivots": [[2, 4], [0, 1]]}, "pivots"),
        (("layers", "1", "gate_proj"), {"form": "interpolative", "rank": 3, "pivots": [[0, "3"]]}, "layer 1"),
    ],
)
def test_faults_are_named(path, value, message):
    bad = copy.deepcopy(GOOD)
    at = bad
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        parse_layers(bad, 2, 32)


def test_one_model_has_one_number_of_groups():
    assert groups_of({0: MIXED, 1: Mlp(8, DENSE, DENSE, DENSE)}) == 1
    assert groups_of({0: Mlp(8, DENSE, DENSE, DENSE), 1: GROUPED}) == 2
    with pytest.raises(CheckpointError, match=r"\[1, 2\] groups"):
        groups_of({0: MIXED, 1: GROUPED})
    with pytest.raises(CheckpointError, match=r"\[1, 2\] groups"):
        Mlp(32, LowRank(4), LowRank(4, (), 2), DENSE)


def test_projections_by_name():
    assert [MIXED[name] for name in PROJECTIONS] == [MIXED.gate, MIXED.up, MIXED.down]
    assert mlp_of(32, dict(MIXED.items())) == MIXED
    with pytest.raises(KeyError):
        MIXED["o_proj"]
    assert MIXED.tensors(8) == {
        **{"gate_proj.u": (8, 4), "gate_proj.v": (4, 32)},
        **{"up_proj.u": (8, 6), "up_proj.c": (6, 26)},
        "down_proj.weight": (8, 32),
    }
    assert MIXED.parameters(8) == 8 * 4 + 4 * 32 + 8 * 6 + 6 * 26 + 8 * 32
