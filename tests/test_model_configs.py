"""Each file of model_configs/: its recipe loads, its numbers follow from the shapes, its commands parse."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.cli import main as cli
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.recipe import from_dict, from_yaml
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import LowRank

FOLDER = Path(__file__).parents[1] / "model_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
MIB = 2**20


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request):
    return request.param


@pytest.fixture
def content(file):
    return yaml.safe_load(file.read_text())


def test_the_six_models_of_the_paper_are_there():
    assert {f.stem for f in FILES} == {
        "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b",
    }  # fmt: skip


def test_the_recipe_of_a_model_config_is_read(file, content):
    assert from_yaml(file) == from_dict(content["recipe"])


VARIANTS = {"interpolative": {"form": "interpolative"}, "pair": {"form": "pair"}, "paper_layout": {"recipe": "paper"}}
"""Key of `expected`: recipe, whose ranks are Eq. 5's here."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_ratios_and_bytes_follow_from_the_shapes(content, variant, tmp_path):
    shape, tp = content["model"]["config"], content["neuron"]["tp_degree"]
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config, groups = read_config(tmp_path), 1 if variant == "paper_layout" else tp
    hidden, intermediate, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    dense = 3 * hidden * intermediate
    assert content["recipe"]["tp_degree"] == tp
    assert content["expected"]["dense_mlp_mib_per_core"] == dense * layers * 2 / tp / MIB
    assert [row["ratio"] for row in content["expected"][variant]] == [0.05, 0.10, 0.20]
    for row in content["expected"][variant]:
        asked = {"ratio": row["ratio"], "tp_degree": groups, "allocation": "uniform", **VARIANTS[variant]}
        pivots = ((0, row["rank"]),) if variant == "interpolative" else ()
        wanted = LowRank(groups * row["rank"], pivots, groups)
        assert set(decide_ranks(config, from_dict(asked)).values()) == {Mlp(intermediate, *[wanted] * 3)}
        part = intermediate // groups
        stored = 3 * groups * row["rank"] * (hidden + part - sum(b - a for a, b in pivots))
        assert row["reached"] == pytest.approx(1 - stored / dense, abs=5e-5)
        near, far = row["rank"] * hidden, stored // 3 - groups * row["rank"] * hidden
        core = 3 * (near + far // tp)
        assert row["mlp_mib_per_core"] == pytest.approx(core * layers * 2 / MIB, rel=1e-5)
        if variant != "paper_layout":
            assert row["mlp_mib_per_core"] < content["expected"]["dense_mlp_mib_per_core"]


def test_the_commands_parse(file):
    lines = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#   nxdi-svd ")]
    assert len(lines) == 3
    for line in lines:
        args, module = cli.parse(shlex.split(line)[1:])
        assert module.__name__.endswith(args.command)
        if args.command == "compress":
            assert FOLDER.parent / args.recipe == file
