"""`nxdi-svd bench`: a compressed directory's MLPs in the simulator."""

import json

import pytest
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.kernels.mlp_counts import Layer, Part, dense, fused, unfused
from nxdi_svd_plugin.svd_config import Projection, layers_to_json

SIZES = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 260}


def bench(directory, *options, capsys):
    assert main(["bench", str(directory), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def with_config(source, target, layers):
    """A directory that has config.json alone: bench reads no weight."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    config["svd_config"]["layers"] = layers_to_json(layers)
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
    found = bench(pairs, "--tp", str(tp), "--tokens", "1", "70", capsys=capsys)
    assert [row["layers"] for row in found["rows"]] == [[0, 2], [0, 2], [1], [1]]
    width = 256 // tp  # packed u and v have their rows padded to 128
    up_gate, down = 64 + 2 * 128 * (40 + width) + width, width + width * 40 + 128 * 64 + 64
    assert found["rows"][0]["costs"]["fused"]["hbm_bytes"] == 2 * (up_gate + down)
    assert [row["kernels"] for row in found["rows"]] == [["up_gate", "down"]] * 2 + [["down"]] * 2
    assert all("no device run" in row["source"] for row in (*found["rows"], *found["totals"]))
    both = [row["costs"]["dense"]["hbm_bytes"] * len(row["layers"]) for row in found["rows"] if row["tokens"] == 70]
    assert found["totals"][1]["costs"]["dense"]["hbm_bytes"] == sum(both)


def test_costs_by_hand():
    """One token: every weight once, and every intermediate of the unfused chain out and in again."""
    layer = Layer(64, 256, Part(40), Part(), Part(40))
    through = 3 * 256  # gate and up read, their product written
    assert dense(layer, 1).hbm_bytes == 2 * (3 * 64 * 256 + 2 * (64 + 256) + (256 + 64) + through)
    gate = 64 * 40 + 40 * 256 + (64 + 40) + (40 + 256)
    down = 256 * 40 + 40 * 64 + (256 + 40) + (40 + 64)
    assert unfused(layer, 1).hbm_bytes == 2 * (gate + (64 * 256 + 64 + 256) + through + down)
    assert fused(layer, 1, False, False) == unfused(layer, 1)


def test_interpolative_layers(pairs, tmp_path, capsys):
    """Pivots in whole tiles on one core; on two cores they are half tiles, which no kernel takes."""
    pivots = {"gate_proj": ((0, 128),), "up_proj": ((128, 256),), "down_proj": ((256, 384),)}
    layer = {name: Projection("interpolative", 128, runs) for name, runs in pivots.items()}
    directory = with_config(pairs, tmp_path / "interpolative", {0: layer})
    config = json.loads((directory / "config.json").read_text()) | {"intermediate_size": 512}
    (directory / "config.json").write_text(json.dumps(config))
    [row] = bench(directory, "--tokens", "1", capsys=capsys)["rows"]
    padded = 128  # rows of u, which has 64
    weights = 2 * (padded * 128 + 128 * 384) + 384 * 128 + 128 * 64
    assert row["costs"]["fused"]["hbm_bytes"] == 2 * (weights + 64 + 512 + 512 + 64)
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
