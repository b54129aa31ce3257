"""plan: what config.json and a recipe determine, against what compress then writes."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nxdi_svd_plugin.checkpoint.source import SourceConfig
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress.plan.cost import peak_memory
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks, stored_parameters
from nxdi_svd_plugin.compress.plan.summary import make_plan, plan_text
from nxdi_svd_plugin.compress.run.job import prepare
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.recipe import Calibration, Recipe
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

SMALL = Calibration(samples=4, length=32)


def llama(hidden, intermediate, layers, tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_plan_is_what_compress_writes(tiny_llama, tmp_path, capsys):
    recipe = "--recipe paper --ratio 0.2 --block 2 --samples 4 --length 32 --dense 1 --rank 0.up_proj=8".split()
    assert main(["plan", "--model", str(tiny_llama), *recipe, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["compress", "--model", str(tiny_llama), "--output", str(tmp_path / "out"), *recipe, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["svd_config"]
    assert plan["layers"] == config["layers"]
    assert plan["ratio"] == report["ratio"] == config["ratio"]
    assert plan["parameters"]["model"] == sum(t.numel() for t in tensors.values())
    assert plan["bytes"]["compressed"] == sum(t.numel() * t.element_size() for t in tensors.values())
    mlp = [sum(t.nbytes for n, t in tensors.items() if n.startswith(f"model.layers.{i}.mlp.")) for i in range(3)]
    assert plan["mlp_bytes_per_layer"] == mlp
    assert abs(plan["ratio"]["mlp"] - 0.2) < 0.02
    assert config["layers"]["1"]["up_proj"] == {"form": "dense"}
    assert config["layers"]["0"]["up_proj"] == plan["layers"]["0"]["up_proj"]


def test_a_real_model_needs_config_json_alone(tmp_path):
    plan = make_plan(llama(4096, 14336, 32, tmp_path), Recipe(ratio=0.10))
    assert plan["parameters"]["model_dense"] == 8_030_261_248  # Llama-3.1-8B
    assert {layer[name]["rank"] for layer in plan["layers"].values() for name in PROJECTIONS} == {2816}
    assert plan["ratio"]["mlp"] == pytest.approx(0.1161, abs=1e-4)
    assert plan["bytes"]["dense"] == 2 * 8_030_261_248
    assert plan["peak_memory"]["bytes"] < 10 * 2**30
    shown = next(line for line in plan_text(plan).splitlines() if line.startswith("  0 to 31"))
    assert shown.split()[3:] == ["2816", "2816", "2816", f"{3 * 2816 * (4096 + 14336) * 2 / 1e6:.3f}"]


def test_memory_does_not_grow_with_layers(tmp_path):
    def peak(layers):
        config = make_plan(llama(2048, 8192, layers, tmp_path), Recipe(ratio=0.10))
        return config["peak_memory"]["bytes"]

    assert peak(2) == peak(80)


def test_rounding_is_explained(tmp_path):
    note = make_plan(llama(576, 1536, 30, tmp_path), Recipe(ratio=0.20))["notes"][0]
    assert "one block of 128 is 30.6 % of a 576 x 1536 matrix, so ratio 0.2 became 0.08333" in note
    assert make_plan(llama(576, 1536, 30, tmp_path), Recipe(ratio=0.20, block=1))["notes"] == []


def config_of(hidden=64, intermediate=160, layers=6):
    raw = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    return SourceConfig(None, raw, "llama", hidden, intermediate, layers)


@given(ratio=st.floats(0.05, 0.6), dense=st.sets(st.sampled_from(["0", "1.up_proj", "2.down_proj", "5"])))
@settings(max_examples=30, deadline=None)
def test_the_rest_makes_up_for_what_stays_dense(ratio, dense):
    """The reached ratio is within half a block of the asked one, whatever is kept dense."""
    config, recipe = config_of(), Recipe(ratio=ratio, block=1, dense=tuple(sorted(dense)))
    try:
        layers = decide_ranks(config, recipe)
    except RecipeError:
        assert ratio > 0.5  # only when the rest cannot give that much
        return
    kept = stored_parameters(config, layers)
    assert 1 - kept / config.mlp_parameters == pytest.approx(ratio, abs=0.5 * (64 + 160) / (64 * 160) + 1e-9)


def test_the_more_specific_selector_wins():
    recipe = Recipe(block=1, ranks={"down_proj": 40, "2.down_proj": 42}, dense=("2",))
    layers = decide_ranks(config_of(), recipe)
    assert layers[1]["down_proj"] == LowRank(40)
    assert layers[2]["down_proj"] == LowRank(42)
    assert layers[2]["up_proj"] == DENSE


def test_ratio_of_the_whole_model(tiny_llama):
    plan = make_plan(tiny_llama, Recipe(ratio=0.1, ratio_of="model", block=1))
    assert plan["ratio"]["model"] == pytest.approx(0.1, abs=0.005)
    assert plan["ratio"]["mlp"] > 0.15


def test_dry_run_checks_and_writes_nothing(tiny_llama, tmp_path, capsys, monkeypatch):
    options = ["--ratio", "0.2", "--block", "2", "--samples", "4", "--length", "32", "--dry-run"]
    assert main(["compress", "--model", str(tiny_llama), "--output", str(tmp_path / "out"), *options]) == 0
    assert "all checks passed; nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=450_000)  # enough for the result, or for the states
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        assert main(["compress", "--model", str(tiny_llama), "--output", str(tmp_path / "out"), *options]) == 1
        assert "GB (statistics 0.00, hidden states" in capsys.readouterr().err
        patch.setenv("RANK", "1")
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
        assert main(["compress", "--model", str(tiny_llama), "--output", str(tmp_path / "out"), *options]) == 0
        assert capsys.readouterr().out == "", "only process 0 of torchrun prints"
    broken = shutil.copytree(tiny_llama, tmp_path / "in")
    (broken / "tokenizer.json").unlink()
    assert main(["compress", "--model", str(broken), "--output", str(tmp_path / "out"), *options]) == 1


def test_wrong_usage_exits_with_2(tiny_llama, capsys):
    assert main(["plan", "--model", str(tiny_llama), "--ratio", "2"]) == 2
    assert main(["plan", "--model", str(tiny_llama), "--block", "2", "--rank", "up_prj=3"]) == 2
    assert "did you mean 'up_proj'" in capsys.readouterr().err


def test_the_memory_model_counts_one_layer(tiny_llama):
    from nxdi_svd_plugin.checkpoint.source import read_config

    memory = peak_memory(read_config(tiny_llama), Recipe(calibration=SMALL))
    assert memory.peak > max(memory.load, memory.calibrate, memory.factor) > 0


@pytest.mark.parametrize(
    ("rank", "form", "said"), [(30, "pair", True), (28, "pair", False), (42, "interpolative", False)]
)
def test_a_rank_that_makes_the_model_larger_is_said(rank, form, said, tiny_llama, caplog):
    """44 x 90 numbers: a pair saves below rank 44 x 90 / 134 = 29.6, interpolative factors at every rank below 44."""
    recipe = Recipe(form=form, block=2, ranks={"0.up_proj": rank}, calibration=SMALL)
    notes = [note for note in make_plan(tiny_llama, recipe)["notes"] if "saves nothing" in note]
    prepare(tiny_llama, recipe)
    logged = [record.message for record in caplog.records if "saves nothing" in record.message]
    assert notes == logged and [note[:20] for note in notes] == ["rank 30 of 0.up_proj"] * said
