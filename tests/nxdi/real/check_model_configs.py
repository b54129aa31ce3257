"""Every model config, built with its real dimensions on the meta device: ranks, shard shapes and bytes of a core."""

import json
import os
from pathlib import Path

import pytest
import ranks
import torch
import yaml
from cpu_models import app_class, make_config

from nxdi_svd_plugin.stored.layers import FORMAT_VERSION, Mlp, layers_to_json
from nxdi_svd_plugin.stored.projection import LowRank

FILES = sorted((Path(__file__).parents[3] / "model_configs").glob("*.yaml"))
FAR = ("down_proj.u", "down_proj.c", "gate_proj.v", "up_proj.v", "gate_proj.c", "up_proj.c")
ARCHITECTURES = {"llama": "SvdLlamaForCausalLM", "qwen3": "SvdQwen3ForCausalLM"}


def write_config(folder, shape, stored):
    """The config.json that `nxdi-svd compress` would write, without weights."""
    mlp = Mlp(shape["intermediate_size"], *[stored] * 3)
    layers = dict.fromkeys(range(shape["num_hidden_layers"]), mlp)
    svd_config = {"format_version": FORMAT_VERSION, **layers_to_json(layers)}
    family = shape["model_type"]
    content = {**shape, "model_type": f"svd_{family}", "architectures": [ARCHITECTURES[family]]}
    content |= {"svd_config": svd_config, "torch_dtype": "bfloat16", "pad_token_id": 0, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def shapes_of_a_core(family, folder, options):
    """{name: (shape, dtype)} of the MLP parameters of one rank, as NxD's ModelBuilder builds the module to shard."""
    from neuronx_distributed.parallel_layers import parallel_state
    from neuronx_distributed.trace.mock_torchdist import mock_distributed
    from neuronx_distributed.utils.model_utils import init_on_device

    app = app_class(family)
    degree = options["tp_degree"]
    os.environ.update(NXD_CPU_MODE="0", LOCAL_WORLD_SIZE=str(degree))
    with mock_distributed(world_size=degree), init_on_device(torch.device("meta"), force_custom_init_on_device=True):
        torch.distributed.init_process_group(backend="xla", rank=0, world_size=degree)
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=degree, skip_collective_init=True)
        model = app._model_cls(make_config(app, folder, **options))
    return {n: (tuple(p.shape), p.dtype) for n, p in model.named_parameters() if ".mlp." in n}


def stored_as(variant, rank, tp):
    """The projection of a key of `expected`, with the rank of a group."""
    groups = 1 if variant == "paper_layout" else tp
    return LowRank(groups * rank, ((0, rank),) if variant == "interpolative" else (), groups)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 2], ids=["0.05", "0.20"])
@pytest.mark.parametrize("variant", ["interpolative", "pair", "paper_layout"])
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_core_holds_what_the_config_says(file, variant, row, tmp_path):
    content = yaml.safe_load(file.read_text())
    shape, expected = content["model"]["config"], content["expected"][variant][row]
    options = {**content["neuron"], "torch_dtype": torch.bfloat16}
    stored = stored_as(variant, expected["rank"], options["tp_degree"])
    folder = write_config(tmp_path, shape, stored)
    found = ranks.run(1, shapes_of_a_core, shape["model_type"], folder, options)[0]
    assert len(found) == 6 * shape["num_hidden_layers"]
    assert {dtype for _, dtype in found.values()} == {torch.bfloat16}
    hidden, part = shape["hidden_size"], shape["intermediate_size"] // options["tp_degree"]
    far = part - expected["rank"] if stored.pivots else part
    for name, (dims, _) in found.items():
        wide = far if name.endswith(FAR) else hidden
        assert torch.Size(dims).numel() == wide * expected["rank"], name
    mib = sum(torch.Size(dims).numel() * 2 for dims, _ in found.values()) / 2**20
    assert mib == pytest.approx(expected["mlp_mib_per_core"], rel=1e-5)
