"""Weights of zeros, with pruned or with repeated neurons: found before long work, stored as they are, and reported."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi_svd_plugin import compress, load_pretrained
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.plan.degenerate import rank_limit
from nxdi_svd_plugin.compress.plan.limits import within
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.factorize.growth import limit_growth
from nxdi_svd_plugin.factorize.interpolative import interpolate
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.recipe import Calibration, from_dict
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

MLP = "model.layers.1.mlp.{}_proj.weight"
GATE, UP, DOWN = (MLP.format(name) for name in ("gate", "up", "down"))
DEFAULT = {"form": "interpolative", "objective": "two_sided", "allocation": "global", "tp_degree": 1}
RECIPES = {
    "default": {**DEFAULT, "ratio": 0.3},
    "uniform": {"recipe": "paper", "form": "interpolative", "ratio": 0.3},
    "paper": {"recipe": "paper", "ratio": 0.3},
    "ranks": {**DEFAULT, "ranks": {"gate_proj": 20, "up_proj": 20, "down_proj": 20}},
}


def zero(tensors, *names):
    for name in names:
        tensors[name].zero_()


def repeated(tensors, name):
    """Ten different neurons, nine times each."""
    tensors[name] = tensors[name][:10].repeat(9, 1).contiguous()


KINDS = {
    "an MLP of zeros": (lambda t: zero(t, GATE, UP, DOWN), {"gate_proj": 0, "up_proj": 0, "down_proj": 0}),
    "down of zeros": (lambda t: zero(t, DOWN), {"down_proj": 0}),
    "gate of zeros": (lambda t: zero(t, GATE), {"gate_proj": 0}),
    "down and o of zeros": (lambda t: zero(t, DOWN, "model.layers.1.self_attn.o_proj.weight"), {"down_proj": 0}),
    "pruned neurons": (lambda t: t[UP][20:].zero_(), {"up_proj": 20}),
    "repeated neurons": (lambda t: repeated(t, GATE), {"gate_proj": 10}),
    "ones": (lambda t: t[UP].fill_(1), {"up_proj": 1}),
}


def changed(source, target, change):
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, "default") for kind in KINDS]
    + [(kind, "uniform") for kind in ("an MLP of zeros", "pruned neurons", "repeated neurons")]
    + [("pruned neurons", "paper"), ("ones", "ranks")],
)
def test_every_kind_is_compressed_and_reported(kind, method, tiny_llama, tmp_path):
    """Dense where no rank is left, never more than the weight has; a dense projection is the source's."""
    change, limits = KINDS[kind]
    check_kind(tiny_llama, tmp_path, change, limits, RECIPES[method])


GROUP_KINDS = {
    "an MLP of zeros": (KINDS["an MLP of zeros"][0], {"gate_proj": 0, "up_proj": 0, "down_proj": 0}),
    "a group of zeros": (lambda t: t[GATE][45:].zero_(), {"gate_proj": 0}),
    "more pruned neurons in one group": (lambda t: t[UP][20:80].zero_(), {"up_proj": 2 * 10}),
    "pruned neurons in one group": (lambda t: t[DOWN][:, 21:45].zero_(), {"down_proj": 2 * 21}),
    "repeated neurons": (KINDS["repeated neurons"][0], {"gate_proj": 2 * 10}),
    "neurons that are repeated in the other group": (lambda t: t[GATE].copy_(t[GATE][:45].repeat(2, 1)), {}),
}


@pytest.mark.parametrize("kind", GROUP_KINDS)
@pytest.mark.parametrize(
    "recipe", [{"ratio": 0.3, "drop": False}, {"recipe": "paper", "tp_degree": 2, "ratio": 0.3}], ids=str
)
def test_all_groups_get_what_the_smallest_can_have(kind, recipe, tiny_llama, tmp_path):
    """Two groups of 45 neurons, each a matrix of its own."""
    check_kind(tiny_llama, tmp_path, *GROUP_KINDS[kind], recipe)


def check_kind(tiny_llama, tmp_path, change, limits, recipe):
    source = changed(tiny_llama, tmp_path / "in", change)
    calibration = vars(Calibration(samples=3, length=32))
    report = compress(source, tmp_path / "out", from_dict({**recipe, "block": 2, "calibration": calibration}))
    found = {r.name: r for r in report.matrices if r.layer == 1}
    assert {name: r.weight_rank for name, r in found.items() if r.weight_rank is not None} == limits
    assert all(r.weight_rank is None for r in report.matrices if r.layer != 1)
    for name, limit in limits.items():
        assert found[name].rank is None or found[name].rank <= limit
        if found[name].rank is None:
            assert f"dense (rank {limit})" in report.to_text()
    saved = json.loads((tmp_path / "out" / "report.json").read_text())["matrices"]
    assert {m["projection"]: m["weight_rank"] for m in saved if m.get("weight_rank") is not None} == limits
    model, dense = load_pretrained(tmp_path / "out"), load_model(source)
    assert torch.isfinite(model(torch.arange(3, 60)[None]).logits).all()
    if all(found[name].rank is None for name in found):  # a layer that stays what it was
        x = torch.randn(5, 44, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.model.layers[1].mlp(x), dense.model.layers[1].mlp(x))


def copies(t, name, first, last):
    """These neurons are the same one."""
    weight = t[name] if name != DOWN else t[name].T
    weight[first:last] = weight[first].clone()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {**DEFAULT, "ratio": 0.5, "tp_degree": 2, "drop": False},
            "zeros or repeated neurons keep 9 projections from small ranks",
        ),
        ({**DEFAULT, "ratio": 0.1, "max_patterns": 1, "dense": ["1"]}, "max_patterns 1 and the budget leave no room"),
    ],
)
def test_what_no_choice_can_reach_is_refused_before_the_first_step(recipe, said, tiny_llama, tmp_path):
    every = [MLP.replace("1", str(i)).format(n) for i in range(3) for n in ("gate", "up", "down")]
    source = changed(tiny_llama, tmp_path / "in", lambda t: zero(t, *every)) if "zeros" in said else tiny_llama
    with pytest.raises(SvdError, match=said):
        compress(
            source,
            tmp_path / "out",
            from_dict({**recipe, "block": 4, "calibration": vars(Calibration(samples=3, length=32))}),
        )
    assert not (tmp_path / "out").exists()


def test_dropping_next_to_zeros_and_copies(tiny_llama, tmp_path):
    """Gate is zero where up is not: neurons that go leave no weight with a gradient behind."""

    def change(t):
        t[GATE][:45].zero_()
        t[UP][45:].zero_()
        copies(t, DOWN, 10, 80)

    source = changed(tiny_llama, tmp_path / "in", change)
    recipe = {"drop": True, "ratio": 0.5, "block": 2, "calibration": vars(Calibration(samples=3, length=32))}
    report = compress(source, tmp_path / "out", from_dict(recipe))
    assert all(r.relative_error is None or r.relative_error < 1 for r in report.matrices)
    assert torch.isfinite(load_pretrained(tmp_path / "out")(torch.arange(3, 60)[None]).logits).all()


def test_a_dry_run_says_it(tiny_llama, tmp_path, capsys):
    source = changed(tiny_llama, tmp_path / "in", lambda t: zero(t, GATE, UP, DOWN, UP.replace("layers.1", "layers.2")))
    argv = ["compress", "--model", str(source), "--output", str(tmp_path / "out"), "--block", "2", "--samples", "2"]
    assert main([*argv, "--length", "32", "--dry-run"]) == 0
    error = capsys.readouterr().err
    assert "limit the rank of 1.down_proj (rank 0), 1.gate_proj (rank 0), 1.up_proj (rank 0) and 1 more" in error


@pytest.mark.parametrize("rank", [1, 3, 17, 43])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limit_of_a_weight_is_numpys_rank(rank, dtype):
    """Repeated and scaled columns, zeros among rows and columns; sides that are not round."""
    generator = torch.Generator().manual_seed(rank)
    few = torch.randn(43, rank, generator=generator).to(dtype)
    weight = few[:, torch.randint(rank, (101,), generator=generator)] * 2.0 ** torch.arange(-50, 51).remainder(5)
    weight = torch.cat([weight.to(dtype), few, torch.zeros(43, 9, dtype=dtype)], 1)
    assert rank_limit(weight) == np.linalg.matrix_rank(weight.double().numpy(), rtol=1e-12) == rank
    weight[4] = 0
    assert rank_limit(weight) == np.linalg.matrix_rank(weight.double().numpy(), rtol=1e-12)


@pytest.mark.parametrize("shape", [(44, 90), (43, 101), (44, 44)])
def test_a_full_or_rounded_weight_has_no_limit(shape):
    """Low rank up to the rounding of its dtype leaves columns to choose from."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert rank_limit(weight) == 43 + shape[0] % 43
    low = weight[:, :5].double() @ weight[:5].double()
    assert rank_limit(low.to(torch.bfloat16)) == shape[0]


def test_what_fits_into_a_limit():
    pair, pivots = LowRank(20), LowRank(20, ((0, 20),))
    assert within(pair, 20, 2) == pair and within(pair, 19, 2) == DENSE and within(DENSE, 0, 2) == DENSE
    assert within(pivots, 24, 2) == pivots and within(pivots, 23, 2) == DENSE and within(pivots, None, 2) == pivots
    groups = LowRank(20, ((0, 10),), 2)  # in each 10, and a column over in four cells
    assert within(groups, 2 * 14, 2) == groups and within(groups, 2 * 13, 2) == DENSE
    assert within(LowRank(20, (), 2), 20, 2) == LowRank(20, (), 2)


def test_pivots_are_no_columns_of_zeros():
    """Four classes whose used columns are no whole blocks; the quotas count what is used."""
    v = torch.zeros(8, 40, dtype=torch.float64)
    for start, used in ((0, 5), (10, 3), (20, 5), (30, 1)):
        v[:, start : start + used] = torch.randn(
            8, used, dtype=torch.float64, generator=torch.Generator().manual_seed(start)
        )
    [found] = interpolate([v], [[torch.arange(start, start + 10) for start in (0, 10, 20, 30)]], 2)
    rest = [i for i in range(40) if i not in found.pivots.tolist()]
    torch.testing.assert_close(v[:, found.pivots] @ found.coefficients, v[:, rest])


def test_quotas_count_what_is_used_in_every_group():
    """Two groups whose second class has three and seven columns that are not zero; the first one wants six of it."""
    classes = [torch.arange(10), torch.arange(10, 20)]
    matrices = [
        torch.randn(8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    ]
    matrices[0][:, 7:10] = 0
    matrices[0][:, 10:] *= 9
    matrices[1][:, 13:] = 0
    for v, found in zip(matrices, interpolate(matrices, [classes, classes], 2), strict=True):
        assert int((found.pivots >= 10).sum()) == 2
        rest = [i for i in range(20) if i not in found.pivots.tolist()]
        torch.testing.assert_close(v[:, found.pivots] @ found.coefficients, v[:, rest])


def test_growth_of_dependent_columns_is_an_error():
    kept = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(SvdError, match="rank-deficient"):
        limit_growth(kept, torch.full((3, 2), 99.0, dtype=torch.float64), 16.0)
