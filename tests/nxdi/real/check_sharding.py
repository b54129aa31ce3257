"""The device's sharding path, run here on the meta device: every rank's factors bit for bit."""

from itertools import product

import pytest
import ranks
import torch
from check_failures import shard
from check_logits import save_interpolative
from cpu_models import app_class
from safetensors.torch import load_file
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin.kernels.packing import unpack
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank
from nxdi_svd_plugin.stored.runs import length

INTERMEDIATE = 90  # no multiple of 4 or 8: the last rank is padded


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """8 heads, so that tp 8 divides them; bfloat16."""
    made = {}
    for family in ("llama", "qwen3"):
        folder = tmp_path_factory.mktemp(f"wide_{family}")
        options = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 264, "hidden_size": 64}
        dense = save_dense(folder / "dense", family, dtype=torch.bfloat16, **options)
        made[family] = save_factored(dense, folder / "svd", 20, ((1, "down_proj"),))
    return made


def expected_shard(tensor, name, factor, rank, tp):
    """Columns of `v` for gate and up, rows of `u` for down, zero-padded to the same width on every rank; else whole."""
    dim = {"gate_proj": ("v", 1), "up_proj": ("v", 1), "down_proj": ("u", 0)}[name]
    if factor != dim[0]:
        return tensor
    width = -(-INTERMEDIATE // tp)
    shape = list(tensor.shape)
    shape[dim[1]] = width * tp
    padded = torch.zeros(shape, dtype=tensor.dtype)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded.narrow(dim[1], rank * width, width)


def found_factors(shards, stem, mlp_impl, tp):
    """This rank's (u, v) of a projection, out of the layout that the kernels read under svd_fused."""
    return plain(shards[f"{stem}.u"], shards[f"{stem}.v"], stem, mlp_impl, -(-INTERMEDIATE // tp))


def plain(u, v, name, mlp_impl, share):
    """u and v as matrices; `share`: neurons of the rank."""
    assert u.dtype == v.dtype == torch.bfloat16
    if mlp_impl == "svd":
        return u, v
    assert len(u) == len(v) == 128
    kernel = "down" if "down_proj" in name else "up_gate"
    return unpack(u, v, share if kernel == "down" else 64, kernel=kernel)


@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["", "sequence_parallel"])
@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_shards_are_bit_exact(family, tp, sequence_parallel, mlp_impl, directories, tmp_path):
    directory = directories[family]
    options = {"mlp_impl": mlp_impl, "tp_degree": tp, "torch_dtype": torch.bfloat16}
    options["sequence_parallel_enabled"] = sequence_parallel
    ranks.run(1, shard, app_class(family), directory, tmp_path, **options)
    source = load_file(directory / "model.safetensors")
    stems = [key.removesuffix(".u") for key in source if ".mlp." in key and key.endswith(".u")]
    assert len(stems) == 8
    for rank in range(tp):
        shards = load_file(tmp_path / f"tp{rank}_sharded_checkpoint.safetensors")
        for stem in stems:
            found = found_factors(shards, stem.removeprefix("model."), mlp_impl, tp)
            for factor, tensor in zip("uv", found, strict=True):
                expected = expected_shard(source[f"{stem}.{factor}"], stem.split(".")[-1], factor, rank, tp)
                assert torch.equal(tensor, expected), (stem, factor, rank)


def expected_of_group(tensor, factor, name, group, groups, seat, cores):
    """A rank's part of a file's factor: the group's part of near, and of far the seat's share, filled up with zeros."""
    down = name == "down_proj"
    near = factor == ("v" if down else "u")
    matrix = (tensor.T if down else tensor).chunk(groups, 1)[group]  # [H, r / g] or [r / g, w / g]
    if not near:
        share = -(-matrix.shape[1] // cores)
        padded = torch.zeros(len(matrix), share * cores, dtype=matrix.dtype)
        padded[:, : matrix.shape[1]] = matrix
        matrix = padded[:, seat * share : (seat + 1) * share]
    return matrix.T if down else matrix


@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
@pytest.mark.parametrize(("groups", "tp"), [(2, 2), (4, 4), (8, 8), (8, 2), (4, 2), (2, 4), (2, 8)])
def test_the_shards_of_groups_are_bit_exact(groups, tp, mlp_impl, directories, tmp_path):
    """Rank k has group k, several whole groups, or its share of one: 39 neurons of layer 2 on 4 ranks are 10 each."""
    widths = {0: 88, 1: 80, 2: 72 if groups > 2 else 78}
    dense = directories["llama"].parent / "dense"
    directory = save_factored(dense, tmp_path / "svd", 24, (), tuple(widths.items()), groups)
    options = {"mlp_impl": mlp_impl, "tp_degree": tp, "torch_dtype": torch.bfloat16}
    ranks.run(1, shard, app_class("llama"), directory, tmp_path, **options)
    source, held, cores = load_file(directory / "model.safetensors"), max(1, groups // tp), max(1, tp // groups)
    for rank, (layer, width), name in product(range(tp), widths.items(), PROJECTIONS):
        shards = load_file(tmp_path / f"tp{rank}_sharded_checkpoint.safetensors")
        stem, share = f"layers.{layer}.mlp.{name}", -(-width // groups // cores)
        for number in range(held):
            suffix = str(number) if held > 1 else ""
            found = plain(shards[f"{stem}.u{suffix}"], shards[f"{stem}.v{suffix}"], name, mlp_impl, share)
            for factor, tensor in zip("uv", found, strict=True):
                group, whole = rank * groups // tp + number, source[f"model.{stem}.{factor}"]
                expected = expected_of_group(whole, factor, name, group, groups, rank % cores, cores)
                assert torch.equal(tensor, expected), (rank, stem, factor, number)


PIVOTS = {"up_proj": ((8, 24), (60, 64)), "down_proj": ((0, 12), (20, 32))}


PIVOTS_OF_TWO = {"up_proj": ((4, 12), (30, 32)), "down_proj": ((0, 6), (10, 16))}
"""In each of two groups of 36 neurons or more."""


def of_group(tensor, key, group, groups):
    """A group's part of a file's tensor [near: over the rank, far: over the neurons]."""
    return tensor if "gate_proj" in key else tensor.chunk(groups, 0 if "down_proj" in key else 1)[group]


def columns(near, far, kept, width):
    """The matrix [H, width] whose columns are those of `near` at `kept` and near @ far elsewhere, neuron by neuron."""
    whole = torch.empty(len(near), width, dtype=torch.float64)
    whole[:, kept] = near[:, : len(kept)].double()
    whole[:, [i for i in range(width) if i not in kept]] = near.double() @ far.double()
    return whole


def up_and_down(tensors, stem, places, width):
    """W_up and W_down as [H, width] out of one core's tensors, or out of the whole ones."""
    found = []
    for name, runs in places.items():
        c = tensors[f"{stem}.{name}.c"]
        near, far = (tensors[f"{stem}.{name}.v"].T, c.T) if name == "down_proj" else (tensors[f"{stem}.{name}.u"], c)
        found.append(columns(near, far, [i for start, stop in runs for i in range(start, stop)], width))
    return found


@pytest.mark.parametrize(("groups", "tp"), [(1, 2), (1, 4), (2, 2), (2, 4)])
def test_the_shards_of_layers_with_pivots_add_up(groups, tp, directories, tmp_path):
    """The sum over the cores of W_up W_down^T is the whole one, in whatever order the neurons are shared out."""
    widths, pivots = ((0, 72), (1, 88), (2, 80)), PIVOTS if groups == 1 else PIVOTS_OF_TWO
    directory = save_interpolative(directories["llama"].parent / "dense", tmp_path / "svd", pivots, widths, groups)
    options = {"mlp_impl": "svd", "tp_degree": tp, "torch_dtype": torch.float32}
    ranks.run(1, shard, app_class("llama"), directory, tmp_path, **options)
    source = load_file(directory / "model.safetensors")
    cores = [load_file(tmp_path / f"tp{rank}_sharded_checkpoint.safetensors") for rank in range(tp)]
    for layer, width in widths:
        stem = f"model.layers.{layer}.mlp"
        slices = [
            {key: of_group(tensor, key, k, groups) for key, tensor in source.items() if stem in key}
            for k in range(groups)
        ]
        whole = [up_and_down(tensors, stem, pivots, width // groups) for tensors in slices]
        mlp = Mlp(width, DENSE, *(LowRank(groups * length(runs), runs, groups) for runs in pivots.values()))
        places = {name: core_runs(mlp, tp // groups)[name] for name in pivots}
        parts = [up_and_down(core, f"layers.{layer}.mlp", places, width // tp) for core in cores]
        found, expected = (sum(up @ down.T for up, down in matrices) for matrices in (parts, whole))
        size = sum(up.abs() @ down.abs().T for up, down in whole).max()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * size)
