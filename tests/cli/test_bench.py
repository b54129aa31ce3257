"""`nxdi-svd bench`: a compressed directory's MLPs in the simulator."""

import json
import os
import subprocess
import sys

import pytest
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels import nki
from nxdi_svd_plugin.kernels.measure import counts
from nxdi_svd_plugin.kernels.measure.calls import DENSE, Share
from nxdi_svd_plugin.kernels.measure.layer import Layer, dense, fused, fused_calls, on_core, unfused
from nxdi_svd_plugin.stored.kernel_fit import KernelFit
from nxdi_svd_plugin.stored.layers import Mlp, layers_to_json
from nxdi_svd_plugin.stored.projection import DENSE as DENSE_WEIGHT
from nxdi_svd_plugin.stored.projection import PROJECTIONS, LowRank

SIZES = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 260}


@pytest.fixture(autouse=True)
def simulator(monkeypatch):
    """The command sets this for its process; a test puts it back."""
    monkeypatch.setenv("NXDI_SVD_NKI", "simulator")


def bench(directory, *options, capsys):
    assert main(["bench", str(directory), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def with_config(source, target, layers, **sizes):
    """A directory that has config.json alone: bench reads no weight."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text()) | sizes
    config["svd_config"] |= layers_to_json(layers)
    config["num_hidden_layers"] = len(layers)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture
def pairs(tmp_path):
    """Three layers of rank 40; layer 1 keeps its gate dense."""
    dense = save_dense(tmp_path / "dense", "llama", **SIZES)
    return save_factored(dense, tmp_path / "svd", 40, ((1, "gate_proj"),))


@pytest.mark.parametrize("tp", [1, 2])
def test_pairs_and_a_dense_projection(pairs, tp, capsys):
    found = bench(pairs, "--tp", str(tp), "--tokens", "1", "170", capsys=capsys)
    assert [row["layers"] for row in found["rows"]] == [[0, 2], [0, 2], [1], [1]]
    width = 256 // tp  # packed u and v have their rows padded to 128
    up_gate, down = 2 * 128 * (40 + width), width * 40 + 128 * 64
    assert found["rows"][0]["costs"]["fused"]["hbm_bytes"] == 2 * (64 + up_gate + down + 64)
    through = 170 * (64 + width + width + 64)
    assert found["rows"][1]["costs"]["fused"]["hbm_bytes"] == 2 * (up_gate + down + through)
    assert [row["kernels"] for row in found["rows"]] == [["mlp"], ["up_gate", "down"], ["down"], ["down"]]
    assert all("no device run" in row["source"] for row in (*found["rows"], *found["totals"]))
    both = [row["costs"]["dense"]["hbm_bytes"] * len(row["layers"]) for row in found["rows"] if row["tokens"] == 170]
    assert found["totals"][1]["costs"]["dense"]["hbm_bytes"] == sum(both)


def test_costs_by_hand():
    """One token: every weight once, and every intermediate of the unfused chain out and in again."""
    layer = Layer(64, 256, 256, Share(40), DENSE, Share(40))
    through = 3 * 256  # gate and up read, their product written
    assert dense(layer, 1).hbm_bytes == 2 * (3 * 64 * 256 + 2 * (64 + 256) + (256 + 64) + through)
    gate = 64 * 40 + 40 * 256 + (64 + 40) + (40 + 256)
    down = 256 * 40 + 40 * 64 + (256 + 40) + (40 + 64)
    assert unfused(layer, 1).hbm_bytes == 2 * (gate + (64 * 256 + 64 + 256) + through + down)
    assert fused(layer, KernelFit({}, {}), 1) == unfused(layer, 1)


def test_a_layer_with_fewer_neurons_is_compared_with_the_whole_dense_one():
    layer = on_core(64, 512, Mlp(384, LowRank(40), DENSE_WEIGHT, LowRank(40)), 2)
    assert (layer.dense_width, layer.width, layer.gate, layer.up) == (256, 192, Share(40), DENSE)
    assert dense(layer, 1) == dense(on_core(64, 512, Mlp(512, *[DENSE_WEIGHT] * 3), 2), 1)


def test_groups_on_a_core_are_one_call_or_a_call_each():
    """Two groups of 256 neurons at rank 40 on one core: X goes in once and Y out once, as long as that is no worse."""
    layer, fit = (
        on_core(64, 512, Mlp(512, *[LowRank(80, groups=2)] * 3), 1),
        KernelFit(dict.fromkeys(PROJECTIONS, ()), {}),
    )
    assert (layer.width, layer.groups, layer.gate) == (256, 2, Share(40))
    up_gate, down = 2 * 128 * (40 + 256), 256 * 40 + 128 * 64  # of a group; u and v have rows padded to 128
    one, many = fused(layer, fit, 1), fused(layer, fit, 129)
    assert one.hbm_bytes == 2 * (2 * (up_gate + down) + 2 * 64)
    assert one.calls == ["mlp 1x64 128x40 128x256 128x40 128x256 128x80 128x64 (2 groups)"]
    assert many.hbm_bytes == 2 * (2 * (up_gate + down) + 129 * 2 * (64 + 2 * 256))
    assert [(call.split()[0], call.endswith("(2 groups)")) for call in many.calls] == [
        ("up_gate", True),
        ("down", True),
    ]
    wide = on_core(3072, 8192, Mlp(8192, *[LowRank(2 * 1664, groups=2)] * 3), 1)
    assert [call.kernel for call in fused_calls(wide, fit, 2048)] == ["up_gate", "up_gate", "down"]
    half = [call.kernel for call in fused_calls(layer, KernelFit({"gate_proj": (), "up_proj": ()}, {}), 129)]
    assert half == ["up_gate", *["matmul"] * 4, "add"]
    assert on_core(64, 512, Mlp(512, *[LowRank(80, groups=2)] * 3), 2).groups == 1


def test_the_text_says_how_many_groups_a_core_has(pairs, tmp_path, capsys):
    grouped = with_config(
        pairs, tmp_path / "grouped", {0: Mlp(512, *[LowRank(80, groups=2)] * 3)}, intermediate_size=512
    )
    for tp, said in ((1, "tp 1, 2 groups a core, 1 tokens"), (2, "tp 2, 1 tokens")):
        assert main(["bench", str(grouped), "--tp", str(tp), "--tokens", "1"]) == 0
        assert said in capsys.readouterr().out


def test_a_dense_down_takes_all_groups_at_once():
    layer = on_core(64, 512, Mlp(512, LowRank(80, groups=2), LowRank(80, groups=2), DENSE_WEIGHT), 1)
    calls = unfused(layer, 1).calls
    assert calls[-1] == "matmul 512x1 512x64" and calls.count("swiglu 256x1 256x1") == 2


def test_interpolative_layers(pairs, tmp_path, capsys):
    """Pivots in whole tiles on one core; on two cores they are half tiles, which no kernel takes."""
    layer = Mlp(512, *(LowRank(128, ((first, first + 128),)) for first in (0, 128, 256)))
    directory = with_config(pairs, tmp_path / "interpolative", {0: layer}, intermediate_size=512)
    [row] = bench(directory, "--tokens", "1", capsys=capsys)["rows"]
    padded = 128  # rows of u, which has 64
    weights = 2 * (padded * 128 + 128 * 384) + 384 * 128 + 128 * 64
    assert row["costs"]["fused"]["hbm_bytes"] == 2 * (weights + 64 + 64)
    found = bench(directory, "--tokens", "1", "--tp", "2", capsys=capsys)
    assert "whole tiles" in found["rows"][0]["no_kernel"]
    assert "fused" not in found["rows"][0]["costs"] and "fused" not in found["totals"][0]["costs"]


def test_the_text_says_that_it_is_simulated(pairs, capsys):
    assert main(["bench", str(pairs), "--tokens", "4"]) == 0
    text = capsys.readouterr().out
    assert "simulated, no device run; us modelled" in text
    assert "2 layers like layer 0, each: ranks 40, 40, 40; tp 1, 4 tokens" in text
    assert "(down in a kernel)" in text and "all layers, 4 tokens" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tp", "0"], "must be 1 or more"),
        (["--tokens", "0"], "must be 1 or more"),
        (["--tokens", "x"], "invalid int"),
    ],
)
def test_bad_options(pairs, options, message, capsys):
    try:
        assert main(["bench", str(pairs), *options]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err


def test_a_dense_directory_is_refused(tmp_path, capsys):
    dense = save_dense(tmp_path / "dense", "llama", **SIZES)
    assert main(["bench", str(dense)]) == 1
    assert "not a compressed directory" in capsys.readouterr().err


@pytest.fixture
def dense_config(tmp_path):
    """config.json alone of a dense model, 512 x 1536."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1536}
    (tmp_path / "wide").mkdir()
    text = json.dumps({**config, "num_attention_heads": 4, "vocab_size": 8})
    (tmp_path / "wide" / "config.json").write_text(text)
    return tmp_path / "wide"


def test_rows_say_what_ran_and_reads_apart_from_writes(pairs, capsys):
    """On two cores: x, u and v in, of many tokens [I, S] out and in again, y out; u and v have rows padded to 128."""
    one, row = bench(pairs, "--tp", "2", "--tokens", "1", "129", capsys=capsys)["rows"][:2]
    weights, cost = 2 * 128 * (40 + 128) + 128 * 40 + 128 * 64, one["costs"]["fused"]
    assert (cost["hbm_read_bytes"], cost["hbm_write_bytes"]) == (2 * (64 + weights), 2 * 64)
    assert cost["calls"] == ["mlp 1x64 128x40 128x128 128x40 128x128 128x40 128x64"]
    cost = row["costs"]["fused"]
    moved = 2 * (129 * 64 + weights + 129 * 128), 2 * 129 * (128 + 64)
    assert (cost["hbm_read_bytes"], cost["hbm_write_bytes"]) == moved
    assert cost["calls"] == ["up_gate 129x64 128x40 128x128 128x40 128x128", "down 128x129 128x40 128x64"]
    assert [call.split()[0] for call in row["costs"]["dense"]["calls"]] == ["matmul", "matmul", "swiglu", "matmul"]
    assert row["dtype"] == "bfloat16" and row["version"] and "simulated" in row["source"]


def test_unfused_pivots_are_added_by_a_pass():
    """t [r, S] and the pivots in, t out: three times 128 elements more than without."""
    layer, tokens = Layer(64, 512, 512, *[Share(128, 128)] * 3), 1
    cost = unfused(layer, tokens)
    assert [call.split()[0] for call in cost.calls] == ["matmul"] * 4 + ["swiglu", "matmul", "add", "matmul"]
    gate = 64 * 128 + 128 * 384 + (64 + 128) + (128 + 384)
    down = 384 * 128 + 128 * 64 + (384 + 128) + 3 * 128 + (128 + 64)
    assert cost.hbm_bytes == 2 * (2 * gate + 3 * 512 + down)


def test_a_dense_model_with_a_ratio(dense_config, tmp_path, capsys):
    """Eq. 5 for 512 x 1536 at 0.2: pairs 307 -> 256; interpolative, r (H + I - r) = 0.8 H·I, 376 -> 384."""
    found = bench(
        dense_config, "--ratio", "0.2", "--tokens", "1", "8", "--output", str(tmp_path / "rows"), capsys=capsys
    )
    assert [(row["up"]["rank"], row["up"]["own"]) for row in found["rows"]] == [(256, 0)] * 2 + [(384, 384)] * 2
    assert [row["tokens"] for row in found["totals"]] == [1, 8, 1, 8] and found["notes"] == []
    assert found["rows"][0]["ranks_from"] == "Eq. 5, pair, ratio 0.2, 1 group"
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == found["rows"]
    fused = found["rows"][2]["costs"]["fused"]["hbm_bytes"]
    assert fused == 2 * (3 * 384 * (512 + 1536 - 384) + 2 * 512)


def test_a_form_that_does_not_exist_hides_no_other(dense_config, capsys):
    """At 0.1 a pair of rank 384 saves nothing; at tp 16 a group has 96 neurons, less than a block."""
    found = bench(dense_config, "--ratio", "0.1", "--tokens", "1", capsys=capsys)
    assert "saves nothing" in found["notes"][0] and [row["up"]["own"] for row in found["rows"]] == [384]
    found = bench(dense_config, "--ratio", "0.2", "--tokens", "1", "--tp", "16", capsys=capsys)
    assert "512 x 96 matrix" in found["notes"][0] and [row["up"]["rank"] for row in found["rows"]] == [256]
    assert main(["bench", str(dense_config), "--ratio", "0.1", "--tp", "16"]) == 2
    assert "saves nothing" in (shown := capsys.readouterr().err) and "512 x 96 matrix" in shown


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tp", "7"], 1, "tp 7 does not divide the intermediate size 1536"),
        (["--ratio", "1.5"], 2, "ratio is 1.5"),
        (["--output", "no/such/rows.jsonl", "--tokens", "1"], 1, "cannot write"),
    ],
)
def test_bad_values_of_a_dense_model(dense_config, options, code, message, capsys):
    assert main(["bench", str(dense_config), "--ratio", "0.2", *options]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [(["--tp", "3"], 1, "tp 3 does not divide"), (["--ratio", "0.1"], 2, "leave out --ratio 0.1")],
)
def test_bad_values_of_a_compressed_model(pairs, options, code, message, capsys):
    assert main(["bench", str(pairs), *options]) == code
    assert message in capsys.readouterr().err


def test_a_directory_without_a_config(tmp_path, capsys):
    assert main(["bench", str(tmp_path)]) == 1
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main(["bench", str(tmp_path)]) == 1
    assert "not valid JSON" in capsys.readouterr().err


def test_ml_dtypes_is_an_extra(pairs, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", str(pairs)]) == 3
    assert versions.pip_line("simulator") in capsys.readouterr().err


def test_a_neuron_compiler_is_named_and_not_used(pairs, tmp_path):
    """An installed neuronxcc, whose kernels would crash here: `jit` is not even there."""
    site = tmp_path / "site"
    (site / "neuronxcc" / "nki").mkdir(parents=True)
    for name in ("__init__", "nki/__init__", "nki/language", "nki/isa"):
        (site / "neuronxcc" / f"{name}.py").write_text("")
    (site / "neuronx_cc-2.21.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: neuronx-cc\nVersion: 2.21\n"
    (site / "neuronx_cc-2.21.dist-info" / "METADATA").write_text(metadata)
    command = [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "bench", str(pairs), "--tokens", "1"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    env.pop("NXDI_SVD_NKI")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "neuronx-cc 2.21 is installed and was not used" in done.stdout and "simulated" in done.stdout


def test_kernels_bound_to_neuronxcc_are_not_counted(monkeypatch):
    monkeypatch.setattr(nki, "SOURCE", "neuronxcc")
    with pytest.raises(KernelError, match="NXDI_SVD_NKI=simulator before"):
        counts.count(None, (1, 1))
