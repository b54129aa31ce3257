"""The device's sharding path, run here on the meta device: every rank's factors bit for bit."""

import pytest
import ranks
import torch
from check_failures import shard
from cpu_models import app_class
from safetensors.torch import load_file
from tiny_models import save_dense, save_factored

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


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["", "sequence_parallel"])
@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_shards_are_bit_exact(family, tp, sequence_parallel, directories, tmp_path):
    directory = directories[family]
    options = {"mlp_impl": "svd_fused", "tp_degree": tp, "torch_dtype": torch.bfloat16}
    options["sequence_parallel_enabled"] = sequence_parallel
    ranks.run(1, shard, app_class(family), directory, tmp_path, **options)
    source = load_file(directory / "model.safetensors")
    checked = 0
    for rank in range(tp):
        shards = load_file(tmp_path / f"tp{rank}_sharded_checkpoint.safetensors")
        for key, tensor in source.items():
            *_, name, factor = key.split(".")
            if ".mlp." in key and factor in ("u", "v"):
                found = shards[key.removeprefix("model.")]
                assert found.dtype == torch.bfloat16
                assert torch.equal(found, expected_shard(tensor, name, factor, rank, tp)), (key, rank)
                checked += 1
    assert checked == tp * 2 * 8
