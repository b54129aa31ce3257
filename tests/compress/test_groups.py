"""Groups of intermediate neurons: a grouped matrix is g separate ones, alike in rank and pivot places."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.checkpoint.source import SourceConfig, read_config
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.statistics import FAR, SQUARES, Statistics, parts, statistics_shapes
from nxdi_svd_plugin.compress.factor import sides
from nxdi_svd_plugin.compress.factor.layer import factor_layer
from nxdi_svd_plugin.compress.factor.spectra import decompose, energies, restore
from nxdi_svd_plugin.compress.forms import Factors, named
from nxdi_svd_plugin.compress.plan.budget import budget, global_ranks
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.stored.layers import mlp_of
from nxdi_svd_plugin.stored.order import indices
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, READS, LowRank

TOKENS = 300
DAMPING = 0.1
# (g, H, I / g, ranks of gate, up and down in every group): a group is wider than H, as wide, or narrower
SIZES = [(1, 13, 40, (5, 4, 6)), (2, 13, 27, (5, 7, 3)), (3, 11, 11, (4, 3, 5)), (8, 17, 7, (3, 2, 4))]
METHODS = [("pair", "input"), ("pair", "two_sided"), ("interpolative", "input"), ("interpolative", "two_sided")]


def problem(hidden, inner):
    """Weights as torch has them, and per projection what it reads and the gradient of what it writes."""
    gen = torch.Generator().manual_seed(hidden)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
    mix = draw(inner, inner) / inner**0.5  # neurons of one group correlate with those of another
    x, z, slope = draw(TOKENS, hidden) @ draw(hidden, hidden), draw(TOKENS, inner) @ mix, draw(TOKENS, hidden)
    read = {"gate_proj": x, "up_proj": x, "down_proj": z}
    gradient = {"gate_proj": draw(TOKENS, inner) @ mix.T, "up_proj": draw(TOKENS, inner), "down_proj": slope}
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {name: draw(*shape) for name, shape in shapes.items()}, read, gradient


def summed(groups, objective, weights, read, gradient):
    """The statistics as the calibration sums them."""
    found = Statistics.zero(statistics_shapes(groups, objective), torch.device("cpu"))
    far = {"gate_proj": gradient["gate_proj"], "up_proj": gradient["up_proj"], "down_proj": read["down_proj"]}
    found.add("inputs", read["gate_proj"])
    for name in PROJECTIONS if objective == "two_sided" else ["down_proj"]:
        for k, part in enumerate(parts(groups, far[name], READS[name].hidden_first(weights[name]).T)):
            found.add(FAR[name], part, k)
        if SQUARES[name] in found.sums:
            found.add_squares(SQUARES[name], far[name])
    if objective == "two_sided":
        found.add("down_gradients", gradient["down_proj"])
    return found


def one_group(objective, name, at, rank, weights, read, gradient):
    """W' [H, I / g] of the slice `at` and its energies, by numpy: S^-T Q_r Q_r^T S^T W of K = S^T W F W^T S."""
    hidden_side = READS[name].value == "hidden"
    w = (weights[name].T if hidden_side else weights[name]).numpy()[:, at]
    x, g = read[name].numpy(), gradient[name].numpy()
    near, far = (x, g[:, at]) if hidden_side else (g, x[:, at])
    near, far = near.T @ near / TOKENS, far.T @ far / TOKENS
    if objective == "two_sided":
        near += DAMPING * np.trace(near) / len(near) * np.eye(len(near))
        far += DAMPING * np.trace(far) / len(far) * np.eye(len(far))
    elif hidden_side:
        far = np.eye(len(far))
    else:
        near = np.eye(len(near))
    root = np.linalg.cholesky(near)
    values, q = np.linalg.eigh(root.T @ w @ far @ w.T @ root)
    values, q = values[::-1], q[:, ::-1][:, :rank]
    return np.linalg.solve(root.T, q @ (q.T @ (root.T @ w))), values


def unfolded(near, far, pivots):
    """near [I | C] with the columns in the stored order."""
    full = torch.empty(near.shape[1], far.shape[1] + near.shape[1] if pivots else far.shape[1], dtype=near.dtype)
    kept = torch.zeros(full.shape[1], dtype=torch.bool)
    kept[indices(pivots)] = True
    full[:, kept] = torch.eye(len(full), dtype=near.dtype)[:, : int(kept.sum())]
    full[:, ~kept] = far
    return near @ full


@pytest.mark.parametrize("dense", [(), ("up_proj",)])
@pytest.mark.parametrize(("form", "objective"), METHODS)
@pytest.mark.parametrize(("count", "hidden", "part", "ranks"), SIZES)
def test_a_grouped_layer_is_separate_matrices(count, hidden, part, ranks, form, objective, dense, monkeypatch):
    """Of every group W' and its energies against the whole far covariance, cut to the group."""
    monkeypatch.setattr(sides, "quick_products", nullcontext)  # float32, where the processor would take bfloat16
    groups, data = Groups(count, hidden, count * part), problem(hidden, count * part)
    recipe = {"form": form, "objective": objective, "allocation": "uniform", "tp_degree": count, "block": 1}
    recipe = from_dict(recipe if objective == "input" else {**recipe, "damping": DAMPING})
    weights = {name: w for name, w in data[0].items() if name not in dense}
    kept = decompose(recipe, summed(groups, objective, *data), TOKENS, weights.items())
    planned = {name: named(form).planned(r, count) for name, r in zip(PROJECTIONS, ranks, strict=True)}
    planned = mlp_of(count * part, {**planned, **dict.fromkeys(dense, DENSE)})
    made = factor_layer(
        data[0].__getitem__,
        lambda name: restore(recipe, kept, TOKENS, name, data[0][name]),
        planned,
        named(form),
        1,
    )
    order = torch.arange(count * part) if made.order is None else made.order
    scale = TOKENS if recipe.is_paper else 1  # sums, not means
    for name, rank in zip(PROJECTIONS, ranks, strict=True):
        if name in dense:
            continue
        projection = made.mlp[name]
        assert (projection.rank, projection.groups, projection.form) == (count * rank, count, form)
        tensors = {key.split(".")[1]: tensor for key, tensor in made.tensors.items() if key.startswith(name)}
        near, far = projection.from_disk(READS[name], tensors)
        assert (near.shape, far.shape) == projection.shapes(hidden, count * part)
        total = np.zeros(groups.side)
        for k, at in enumerate(groups.slices()):
            wanted, values = one_group(objective, name, at, rank, *data)
            found = unfolded(near.chunk(count, 1)[k], far.chunk(count, 1)[k], projection.pivots)
            assert made.order is None or set(order[at].tolist()) == set(range(at.start, at.stop))
            # products of float32 turn the eigenvectors by their rounding over the gap of the eigenvalues
            turned = 20 * 2**-24 * values[0] / (values[rank - 1] - np.append(values, 0.0)[rank])
            wanted = torch.from_numpy(wanted)[:, order[at] - at.start]
            torch.testing.assert_close(found, wanted, rtol=0, atol=turned * float(wanted.abs().max()))
            total += scale * values[: groups.side]
        torch.testing.assert_close(
            energies(recipe, kept, name), torch.from_numpy(total), rtol=0, atol=1e-6 * float(total[0])
        )
        assert made.measured[name]["energy"] == pytest.approx(total.sum(), rel=1e-6)
        assert made.measured[name]["discarded"] == pytest.approx(total[rank:].sum(), rel=1e-5)
    for name in dense:  # what stays dense has the neurons where the others have them
        if made.order is not None:
            assert torch.equal(
                made.tensors[f"{name}.weight"], data[0][name].index_select(READS[name].weight_axis, order)
            )


@pytest.mark.parametrize(("count", "hidden", "part", "ranks"), SIZES)
def test_the_output_error_is_that_of_the_outputs(count, hidden, part, ranks):
    """Exact for gate and up; that of down adds the groups' errors as if they were uncorrelated."""
    groups, (weights, read, gradient) = Groups(count, hidden, count * part), problem(hidden, count * part)
    recipe = from_dict({"recipe": "paper", "tp_degree": count})
    kept = decompose(recipe, summed(groups, "input", weights, read, gradient), TOKENS, weights.items())
    planned = {name: LowRank(count * r, (), count) for name, r in zip(PROJECTIONS, ranks, strict=True)}
    for name, rank in zip(PROJECTIONS, ranks, strict=True):
        made = factor_layer(
            weights.__getitem__,
            lambda name: restore(recipe, kept, TOKENS, name, weights[name]),
            mlp_of(count * part, {**dict.fromkeys(PROJECTIONS, DENSE), name: planned[name]}),
            named("pair"),
            1,
        )
        dropped = whole = 0.0
        for at in groups.slices():
            x = read[name] if name != "down_proj" else read[name][:, at]
            w = weights[name].T[:, at] if name != "down_proj" else weights[name].T[at]
            cut = torch.from_numpy(one_group("input", name, at, rank, weights, read, gradient)[0])
            dropped += float((x @ (w - (cut if name != "down_proj" else cut.T))).square().sum())
            whole += float((x @ w).square().sum())
        assert made.measured[name]["relative_error"] == pytest.approx((dropped / whole) ** 0.5, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_groups_have_their_own_pivots_in_the_same_places(data):
    """Any ranks and blocks: the order stays inside each group, one set of runs serves all, and W' is what it was."""
    count, block = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 4]))
    part, hidden = data.draw(st.integers(6 * block, 40)), 50
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    names = data.draw(st.sets(st.sampled_from(PROJECTIONS), min_size=1))
    cut = {}
    for name in names:
        rank = block * data.draw(st.integers(1, part // (3 * block)))
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        cut[name] = [Factors(draw(hidden, rank), draw(rank, part), None) for _ in range(count)]
    made = named("interpolative").store(((name, cut[name]) for name in PROJECTIONS if name in cut), part, block)
    assert all(
        set(own.tolist()) == set(range(k * part, (k + 1) * part)) for k, own in enumerate(made.order.split(part))
    )
    for name, groups in cut.items():
        projection, (near, far) = made.projections[name], made.factors[name]
        assert projection.groups == count and projection.rank == count * len(groups[0].far)
        assert all(edge % block == 0 for run in projection.pivots for edge in [run[1] - run[0]])
        for k, t in enumerate(groups):
            found = unfolded(near.chunk(count, 1)[k], far.chunk(count, 1)[k], projection.pivots)
            wanted = (t.near @ t.far)[:, made.order[k * part : (k + 1) * part] - k * part]
            if not made.measured[name]["limited"]:
                # the pivots' condition is below 1e4 where no coefficient had to be limited
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("form", ["pair", "interpolative"])
@pytest.mark.parametrize(("groups", "block"), [(1, 32), (2, 32), (2, 16), (4, 16), (8, 8)])
def test_the_budget_is_met_with_equal_ranks(form, groups, block):
    """SmolLM2's sizes and energies that fall at another pace in every projection."""
    config, generator = SourceConfig(Path(), {}, "llama", 576, 1536, 30), np.random.default_rng(groups)
    side = min(576, 1536 // groups)
    found = {
        (i, name): np.exp(-np.arange(side) * generator.uniform(0.002, 0.02)) * generator.uniform(0.1, 3)
        for i in range(30)
        for name in PROJECTIONS
    }
    for ratio in (0.05, 0.2):
        recipe = from_dict({"form": form, "tp_degree": groups, "block": block, "ratio": ratio})
        layers = global_ranks(config, recipe, found)
        low = [p for mlp in layers.values() for _, p in mlp.items() if isinstance(p, LowRank)]
        assert low and all(p.groups == groups and p.rank % (groups * block) == 0 for p in low)
        used = sum(mlp.parameters(576) for mlp in layers.values())
        assert 0.999 <= used / budget(config, recipe) <= 1


@pytest.mark.parametrize(
    ("form", "hidden", "inner", "groups", "unused"),
    [("interpolative", 2048, 6144, 8, 0.001), ("pair", 2048, 8192, 4, 0.0025), ("pair", 3072, 8192, 8, 0.0025)],
)
def test_a_budget_takes_ratios_that_eq_5_rounds_to_nothing_saved(form, hidden, inner, groups, unused):
    """Qwen3-1.7B at tp 8, Llama-3.2-1B at tp 4, Llama-3.2-3B at tp 8, blocks of 128. One block in all groups of a
    projection is up to 0.27 % of a budget here; what is left is less than that."""
    config = SourceConfig(Path(), {}, "llama", hidden, inner, 16)
    options = {"form": form, "tp_degree": groups, "ratio": 0.05}
    with pytest.raises(RecipeError, match="saves nothing"):
        decide_ranks(config, from_dict({**options, "allocation": "uniform"}))
    shown = decide_ranks(config, from_dict(options))
    assert all(p.parameters(hidden, inner) < hidden * inner for mlp in shown.values() for _, p in mlp.items())
    energy = np.exp(-np.arange(min(hidden, inner // groups)) / 200)
    found = {(i, name): energy * (1 + i) for i in range(16) for name in PROJECTIONS}
    layers = global_ranks(config, from_dict(options), found)
    used = sum(mlp.parameters(hidden) for mlp in layers.values())
    assert 1 - unused <= used / budget(config, from_dict(options)) <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tp_degree": 4},
            "tp_degree 4 does not divide the model's 90 intermediate neurons into equal groups; use one",
        ),
        ({"tp_degree": 91}, "such as 18, 30, 45, 90"),
        ({"tp_degree": 2, "ranks": {"up_proj": 7}}, "does not divide over 2 groups of equal rank; use a multiple of 2"),
        ({"tp_degree": 3, "ranks": {"up_proj": 93}}, "more than its full rank 30 in each of 3 groups"),
        ({"tp_degree": 3, "ranks": {"up_proj": 90}}, "multiple of the block 4 and less than 30 in each of 3 groups"),
        ({"tp_degree": 30}, "block 4 is larger than the smaller side of a 44 x 3 matrix"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_runs(changes, said, tiny_llama, tmp_path):
    recipe = from_dict({"block": 4, "ratio": None if "ranks" in changes else 0.2, **changes})
    with pytest.raises(RecipeError, match=said):
        decide_ranks(read_config(tiny_llama), recipe)
    with pytest.raises(RecipeError, match=said):
        compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [0, -2, "two", 1.5, True])
def test_a_degree_is_a_number_of_cores(wrong):
    with pytest.raises(RecipeError, match="tp_degree"):
        from_dict({"tp_degree": wrong})
