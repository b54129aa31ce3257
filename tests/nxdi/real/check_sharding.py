"""The device's sharding path, run here on the meta device: every rank's factors bit for bit."""

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
from nxdi_svd_plugin.stored.projection import DENSE, LowRank
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
    u, v = shards[f"{stem}.u"], shards[f"{stem}.v"]
    assert u.dtype == v.dtype == torch.bfloat16
    if mlp_impl == "svd":
        return u, v
    assert len(u) == len(v) == 128
    kernel = "down" if "down_proj" in stem else "up_gate"
    return unpack(u, v, -(-INTERMEDIATE // tp) if kernel == "down" else 64, kernel=kernel)


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


PIVOTS = {"up_proj": ((8, 24), (60, 64)), "down_proj": ((0, 12), (20, 32))}


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


@pytest.mark.parametrize("tp", [2, 4])
def test_the_shards_of_layers_with_pivots_add_up(tp, directories, tmp_path):
    """The sum over the cores of W_up W_down^T is the whole one, in whatever order the neurons are shared out."""
    widths = ((0, 72), (1, 88), (2, 80))
    directory = save_interpolative(directories["llama"].parent / "dense", tmp_path / "svd", PIVOTS, widths)
    options = {"mlp_impl": "svd", "tp_degree": tp, "torch_dtype": torch.float32}
    ranks.run(1, shard, app_class("llama"), directory, tmp_path, **options)
    source = load_file(directory / "model.safetensors")
    cores = [load_file(tmp_path / f"tp{rank}_sharded_checkpoint.safetensors") for rank in range(tp)]
    for layer, width in widths:
        up, down = up_and_down(source, f"model.layers.{layer}.mlp", PIVOTS, width)
        mlp = Mlp(width, DENSE, *(LowRank(length(runs), runs) for runs in PIVOTS.values()))
        places = {name: core_runs(mlp, tp)[name] for name in PIVOTS}
        parts = [up_and_down(core, f"layers.{layer}.mlp", places, width // tp) for core in cores]
        found = sum(up_k @ down_k.T for up_k, down_k in parts)
        torch.testing.assert_close(found, up @ down.T, rtol=0, atol=1e-12 * (up.abs() @ down.abs().T).max())
