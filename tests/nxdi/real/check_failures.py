"""A damaged or mismatched checkpoint never runs: every path of NxDI that reads weights raises."""

import json
import os
import shutil

import pytest
import ranks
import torch
from cpu_models import app_class, load_on_cpu, make_config
from safetensors.torch import load_file, save_file

STEM = "model.layers.2.mlp.up_proj"


def drop(tensors):
    del tensors[f"{STEM}.v"]


def add(tensors):
    tensors["model.layers.0.mlp.extra_proj.weight"] = torch.zeros(2, 2)


def leave_dense_weight(tensors):
    tensors[f"{STEM}.weight"] = torch.zeros(90, 44)


def reshape(tensors):
    tensors[f"{STEM}.u"] = tensors[f"{STEM}.u"][:, :-1].contiguous()


def transpose(tensors):
    tensors[f"{STEM}.v"] = tensors[f"{STEM}.v"].t().contiguous()


def quantise(tensors):
    tensors[f"{STEM}.v"] = tensors[f"{STEM}.v"].to(torch.int8)


def drop_dense(tensors):
    del tensors["model.layers.1.mlp.down_proj.weight"]


DAMAGES = {
    drop: "lacks the MLP tensors layers.2.mlp.up_proj.v",
    add: "has the MLP tensors layers.0.mlp.extra_proj.weight",
    leave_dense_weight: "has the MLP tensors layers.2.mlp.up_proj.weight",
    reshape: r"layers.2.mlp.up_proj.u has shape \[44, 19\]; config.json says \[44, 20\]",
    transpose: r"layers.2.mlp.up_proj.v has shape \[90, 20\]",
    quantise: "has dtype torch.int8",
    drop_dense: "lacks the MLP tensors layers.1.mlp.down_proj.weight",
}


def damaged(directory, tmp_path, damage):
    copy = tmp_path / "damaged"
    shutil.copytree(directory, copy)
    tensors = load_file(copy / "model.safetensors")
    damage(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def shard(app, directory, folder, **options):
    """The device's sharding path: meta device, mocked process group; what load and save_sharded_checkpoint call."""
    os.environ.update(NXD_CPU_MODE="0", LOCAL_WORLD_SIZE=str(options["tp_degree"]))
    model = app(str(directory), make_config(app, directory, **options))
    model.get_builder().shard_checkpoint(serialize_path=str(folder))


def on_cpu(app, directory, folder):
    load_on_cpu(app, directory, mlp_impl="svd_fused")


def sharded(app, directory, folder):
    shard(app, directory, folder, mlp_impl="svd_fused", tp_degree=2)


@pytest.mark.parametrize("path", [on_cpu, sharded])
@pytest.mark.parametrize(("damage", "message"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint(damage, message, path, svd_llama, tmp_path):
    copy = damaged(svd_llama, tmp_path, damage)
    with pytest.raises(ranks.RankError, match=f"NxdiError: .*{message}"):
        ranks.run(1, path, app_class("llama"), copy, tmp_path / "shards")


def test_a_wrong_rank_in_the_config(svd_llama, tmp_path):
    copy = damaged(svd_llama, tmp_path, lambda tensors: None)
    config = json.loads((copy / "config.json").read_text())
    config["svd_config"]["layers"]["2"]["up_proj"]["rank"] = 24
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ranks.RankError, match=r"has shape \[44, 20\]; config.json says \[44, 24\]"):
        ranks.run(1, on_cpu, app_class("llama"), copy, tmp_path)


def test_a_dense_checkpoint_under_a_compressed_config(svd_llama, tiny_llama, tmp_path):
    copy = damaged(svd_llama, tmp_path, lambda tensors: None)
    shutil.copy(svd_llama.parent / "dense" / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(ranks.RankError, match="NxdiError: the checkpoint lacks"):
        ranks.run(1, on_cpu, app_class("llama"), copy, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_compressed_checkpoint_with_stock_classes(family, request):
    """Stock NxDI would answer with random MLPs; importing the plugin is enough for it to refuse."""
    directory = request.getfixturevalue(f"svd_{family}")
    with pytest.raises(ranks.RankError, match="SVD-compressed, but Neuron.* is NxDI's own class.*random MLPs"):
        ranks.run(1, load_on_cpu, app_class(family, plugin=False), directory)


def hook_without_tensors():
    from nxdi_svd_plugin.nxdi.low_rank import LowRankFactors
    from nxdi_svd_plugin.stored.layers import Mlp
    from nxdi_svd_plugin.stored.projection import LowRank

    factors = LowRankFactors(Mlp(8, *[LowRank(2)] * 3), "up_proj", 6, tp_degree=2, dtype=torch.float32)
    factors.preshard_hook({}, "layers.0.mlp.up_proj.weight")


def test_a_hook_that_finds_no_tensor_raises():
    with pytest.raises(ranks.RankError, match="NxdiError: layers.0.mlp.up_proj.u is missing"):
        ranks.run(1, hook_without_tensors)


def dense_config_compressed_path(dense, compressed):
    app = app_class("llama")
    config = make_config(app, dense)
    del config._name_or_path  # where it exists, NxDI reads the weights from there
    app(str(compressed), config).to_cpu()


def test_a_dense_config_with_a_compressed_checkpoint(svd_llama):
    with pytest.raises(ranks.RankError, match="SVD-compressed, but mlp_impl is 'dense'"):
        ranks.run(1, dense_config_compressed_path, svd_llama.parent / "dense", svd_llama)
