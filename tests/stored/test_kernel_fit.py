"""Which projections the kernels take, and the reason for the others; pivots of a plan and stored ones agree."""

import pytest

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.stored.cells import cell_sizes, core_runs, runs_of
from nxdi_svd_plugin.stored.kernel_fit import kernel_degrees, kernel_fit
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

PAIR, TILES = LowRank(20), LowRank(256, ((0, 256),))


def fitted(gate, up, down, tp=1, width=1024):
    return kernel_fit(Mlp(width, gate, up, down), tp)


def test_pairs_go_at_any_degree():
    for tp in (1, 2, 3, 8):
        fit = fitted(PAIR, PAIR, PAIR, tp, 1000)
        assert fit.up_gate and fit.down and not fit.refused
        assert dict(fit.pivots) == {"gate_proj": (), "up_proj": (), "down_proj": ()}


def test_pivots_go_in_whole_tiles_of_every_core():
    one = fitted(TILES, TILES, PAIR)
    assert one.pivots == {"gate_proj": ((0, 2),), "up_proj": ((0, 2),), "down_proj": ()}
    two = fitted(TILES, TILES, PAIR, tp=2)
    assert two.pivots["gate_proj"] == ((0, 1),)
    four = fitted(TILES, TILES, PAIR, tp=4)
    assert not four.up_gate and four.down and four.misfit == ("gate_proj", "up_proj")
    assert "--tp-degree 4 --block 128 or --form pair" in four.describe()
    assert fitted(TILES, TILES, PAIR, tp=1, width=1025).misfit == ("gate_proj", "up_proj")
    assert fitted(LowRank(100, ((0, 100),)), PAIR, PAIR).misfit == ("gate_proj",)


def test_up_gate_takes_two_of_one_form():
    mixed = fitted(TILES, PAIR, TILES)
    assert not mixed.up_gate and mixed.down and not mixed.misfit
    assert mixed.refused["gate_proj"] == "gate is interpolative and up pair, the kernel takes one form"
    half = fitted(DENSE, PAIR, PAIR)
    assert half.refused == {"gate_proj": "it is dense", "up_proj": "the kernel takes gate and up together"}
    assert half.down


def test_a_group_fits_like_an_mlp_of_its_own():
    """Two groups of 128 pivots among 512 neurons: a tile of a core at degree 1 (both) and 2 (one), half of one at 4."""
    grouped = LowRank(256, ((0, 128),), 2)
    for tp in (1, 2):
        fit = fitted(grouped, grouped, grouped, tp)
        assert fit == fitted(*[LowRank(128, ((0, 128),))] * 3, 1, 512) and fit.up_gate and fit.down
    four = fitted(grouped, grouped, grouped, 4)
    assert four.misfit == ("gate_proj", "up_proj", "down_proj")
    assert "--tp-degree 4 --block 128 or --form pair" in four.describe()
    with pytest.raises(SvdError, match=r"2 groups of neurons do not go evenly on 3 cores; .* 1, 2 or a multiple of 2"):
        fitted(grouped, grouped, grouped, 3)


def test_degrees_of_groups():
    assert kernel_degrees({0: Mlp(1024, *[LowRank(256, ((0, 128),), 2)] * 3)}) == [1, 2]
    assert kernel_degrees({0: Mlp(1024, *[LowRank(512, ((0, 256),), 2)] * 3)}) == [1, 2, 4]
    assert kernel_degrees({0: Mlp(999, *[LowRank(30, (), 3)] * 3)}) == [1, 3]
    assert kernel_degrees({0: Mlp(996, *[LowRank(30, (), 6)] * 3), 1: Mlp(7, DENSE, DENSE, DENSE)}) == [1, 2, 6]


def test_degrees_that_fit_every_layer():
    assert kernel_degrees({0: Mlp(1024, TILES, TILES, PAIR)}) == [1, 2]
    assert kernel_degrees({0: Mlp(1024, TILES, TILES, PAIR), 1: Mlp(1024, *[LowRank(128, ((0, 128),))] * 3)}) == [1]
    assert kernel_degrees({0: Mlp(1000, PAIR, PAIR, DENSE)}) == [1, 2, 4, 8]
    assert kernel_degrees({0: Mlp(1000, LowRank(100, ((0, 100),)), PAIR, PAIR)}) == []


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 5, 6, 7, 8), (0, 0, 8, 0, 0, 0, 0, 8), (4, 0, 0, 0, 4, 0, 4, 1)])
def test_cells_and_runs_are_inverse(sizes):
    assert tuple(cell_sizes(runs_of(sizes), sum(sizes))) == sizes


def test_cells_do_not_depend_on_where_the_pivots_lie():
    apart = ((0, 2), (6, 8)), ((4, 6),), ((1, 3),)
    assert cell_sizes(apart, 10) == [3, 1, 0, 0, 2, 0, 1, 3]


def test_cores_share_every_cell():
    mlp = Mlp(32, LowRank(8, ((0, 8),)), LowRank(8, ((4, 12),)), LowRank(4, ((12, 16),)))
    assert core_runs(mlp, 4) == {"gate_proj": ((0, 2),), "up_proj": ((1, 3),), "down_proj": ((3, 4),)}
