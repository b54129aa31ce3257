"""Which core has which groups, and what it has of one."""

from pathlib import Path

import pytest

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.cores import Sharing, fits, neurons_of, repeated, share_of, sharing
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

PAIR = LowRank(12, (), 2)


@pytest.mark.parametrize(
    ("groups", "tp", "expected", "held", "seats"),
    [
        (1, 1, Sharing(1, 1), [[0]], [0]),
        (1, 3, Sharing(1, 3), [[0], [0], [0]], [0, 1, 2]),
        (2, 2, Sharing(1, 1), [[0], [1]], [0, 0]),
        (6, 2, Sharing(3, 1), [[0, 1, 2], [3, 4, 5]], [0, 0]),
        (2, 4, Sharing(1, 2), [[0], [0], [1], [1]], [0, 1, 0, 1]),
    ],
)
def test_every_core_has_its_groups(groups, tp, expected, held, seats):
    found = sharing(groups, tp)
    assert found == expected
    assert [list(found.held(core)) for core in range(tp)] == held
    assert [found.seat(core) for core in range(tp)] == seats


@pytest.mark.parametrize("groups", range(1, 9))
@pytest.mark.parametrize("tp", range(1, 9))
def test_every_group_is_somewhere_equally_often_or_refused(groups, tp):
    if not fits(groups, tp):
        with pytest.raises(
            SvdError, match=f"{groups} groups of neurons do not go evenly on {tp} cores; use .* {groups}"
        ):
            sharing(groups, tp)
        return
    found = sharing(groups, tp)
    everywhere = [(group, found.seat(core)) for core in range(tp) for group in found.held(core)]
    assert sorted(everywhere) == [(group, seat) for group in range(groups) for seat in range(found.cores)]


def test_the_neurons_of_a_core():
    mlp = Mlp(90, PAIR, PAIR, DENSE)  # two groups of 45
    assert [share_of(mlp, tp) for tp in (1, 2, 4, 8)] == [45, 45, 23, 12]
    assert [neurons_of(mlp, tp) for tp in (1, 2, 4, 8)] == [90, 45, 23, 12]
    assert neurons_of(Mlp(91, DENSE, DENSE, DENSE), 2) == 46


def test_what_shared_groups_repeat():
    """Near matrices [8, 6] of gate and up, whole on 2 and on 4 cores, and of a layer in other numbers."""
    layers = {0: Mlp(90, PAIR, PAIR, DENSE), 1: Mlp(90, DENSE, DENSE, DENSE)}
    assert [repeated(layers, 8, tp) for tp in (1, 2, 4, 8)] == [0, 0, 96 - 48, 96 - 24]
    assert repeated({0: Mlp(8, *[LowRank(3)] * 3)}, 5, 2) == 45 - 22


@pytest.mark.parametrize(("tp", "rank"), [(1, 1536), (2, 1280), (4, 896), (8, 640)])
def test_the_table_of_docs_nxdi(tp, rank):
    """Llama-3.2-1B at ratio 0.05: the largest blocks of 128 that save it; numbers on a core out of the shapes."""
    hidden, wide = 2048, 8192
    assert rank % 128 == 0 and rank * (hidden + wide // tp) <= 0.95 * hidden * wide // tp
    assert (rank + 128) * (hidden + wide // tp) > 0.95 * hidden * wide // tp

    def on_a_core(rank, groups):
        mlp = Mlp(wide, *[LowRank(groups * rank, (), groups)] * 3)
        return 3 * rank * sharing(groups, tp).groups * (hidden + share_of(mlp, tp)) / 1e6

    row = (
        f"| {tp} | {3 * hidden * wide / tp / 1e6:.1f} | {on_a_core(1536, 1):.1f} | {on_a_core(rank, tp):.1f} | {rank} |"
    )
    assert row in (Path(__file__).parents[2] / "docs" / "nxdi.md").read_text()
