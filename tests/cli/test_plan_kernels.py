"""`nxdi-svd plan --tp`: the kernel plan of a model."""

import json

import pytest
from tiny_models import save_dense

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.cli.plan_kernels import kernel_plans, kernel_text
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank


def test_the_kernel_plan_of_a_model(tiny_llama, capsys):
    command = [
        "plan",
        "--model",
        str(tiny_llama),
        "--ratio",
        "0.05",
        "--block",
        "4",
        "--tp",
        "2",
        "--tokens",
        "1",
        "640",
        "--form",
        "pair",
    ]
    assert main([*command, "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert [plan["tokens"] for plan in kernels] == [1, 640]
    assert kernels[0]["mlp"]["strips"] == [[1, [1]]] and kernels[0]["mlp"]["bound"] == "dma"
    for plan, names in zip(kernels, (["mlp"], ["up_gate", "down"]), strict=True):
        for kernel in names:
            counts = plan[kernel]["counts"]
            assert 0 < counts["transfers"] < counts["descriptors"] and counts["instructions"] > counts["transfers"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "no device run" in text and f"{counts['descriptors']} descriptors of {counts['transfers']} transfers" in text
    assert "to trace" in text and "assumes 2 copies" in text


def test_without_the_simulator_the_counts_are_left_out(monkeypatch):
    layers = {0: Mlp(256, *[LowRank(40)] * 3)}
    monkeypatch.setattr("nxdi_svd_plugin.versions.installed", lambda name: None)
    [plan] = kernel_plans(64, layers, 2, [1], "source")
    assert "counts" not in plan["mlp"]
    assert 'not counted: pip install "nxdi-svd-plugin[simulator]"' in kernel_text([plan])


def test_a_degree_that_does_not_divide_is_an_error(tiny_llama, capsys):
    options = ["--ratio", "0.05", "--block", "4", "--form", "pair", "--tp-degree", "1", "--tp", "7"]
    assert main(["plan", "--model", str(tiny_llama), *options]) != 0
    assert "does not divide" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_without_tp_nothing_is_said_about_kernels(tiny_llama, capsys, option):
    assert main(["plan", "--model", str(tiny_llama), "--ratio", "0.05", "--block", "4", *option]) == 0
    assert "kernels" not in capsys.readouterr().out


def plans_of(model, *options, capsys):
    assert main(["plan", "--model", str(model), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["kernels"]


def test_interpolative_factors_read_their_own_bytes(tmp_path, capsys):
    """H 512, I 1536, r 384: u [H, r] and c [r, I - r] twice, then c [I - r, r] and v [r, H], and the activations."""
    model = save_dense(tmp_path / "dense", "llama", hidden_size=512, intermediate_size=1536)
    ranks = [f"--rank={name}_proj=384" for name in ("gate", "up", "down")]
    options = [*ranks, "--tp-degree", "1", "--tp", "1", "--tokens", "1", "200", "--dtype", "bfloat16"]
    one, many = plans_of(model, *options, capsys=capsys)
    first, second = 2 * 2 * (512 * 384 + 384 * 1152), 2 * (1152 * 384 + 384 * 512)
    assert one["mlp"]["hbm_read_bytes"] == first + second + 2 * 512
    assert many["up_gate"]["hbm_read_bytes"] == first + 2 * 200 * 512
    assert many["down"]["hbm_read_bytes"] == second + 2 * 200 * 1536


def test_pivots_that_are_no_whole_tiles_have_no_kernel_and_the_plan_says_so(tmp_path, capsys):
    model = save_dense(tmp_path / "dense", "llama", hidden_size=512, intermediate_size=1536)
    options = ["--rank=gate_proj=384", "--rank=up_proj=384", "--rank=down_proj=384", "--tp-degree", "1"]
    options += ["--tp", "2", "--tokens", "1"]
    [plan] = plans_of(model, *options, capsys=capsys)
    assert "not whole tiles of 128 neurons on every core" in plan["no_kernel"]
    assert "up_gate" not in plan and "down" not in plan
    assert main(["plan", "--model", str(model), *options]) == 0
    assert "--tp-degree 2 --block 128 or --form pair" in capsys.readouterr().out


@pytest.mark.parametrize(("degree", "dropped"), [("1", True), ("2", False)])
def test_neurons_that_are_no_whole_tiles_need_pairs(tmp_path, capsys, degree, dropped):
    """864 on each of two cores, in one group or in two."""
    model = save_dense(tmp_path / "dense", "llama", hidden_size=512, intermediate_size=1728)
    options = ["--ratio", "0.1", "--tp-degree", degree, "--tp", "2", "--tokens", "1"]
    assert main(["plan", "--model", str(model), *options]) == 0
    said = capsys.readouterr().out
    assert (
        "a core has 864 neurons, not whole tiles of 128 as interpolative factors need; compress with --form pair"
        in said
    )
    assert ("--tp-degree 2 --block 128 may do" in said) == dropped


def test_a_plan_through_hbm_has_no_strips():
    layers = {0: Mlp(14336, DENSE, DENSE, LowRank(3072))}
    text = kernel_text(kernel_plans(4096, layers, 1, [2048], "bfloat16"))
    assert "down     X·U through HBM; 272.6 MB of HBM" in text


def test_layers_that_store_the_same_share_a_plan_and_a_dense_projection_is_named():
    pair = LowRank(40)
    layers = {0: Mlp(256, *[pair] * 3), 1: Mlp(256, DENSE, pair, pair), 2: Mlp(256, *[pair] * 3)}
    both, one = kernel_plans(64, layers, 2, [1], "source")
    assert both["layers"] == ["0", "2"] and both["ranks"] == [40, 40, 40] and "no_kernel" not in both
    assert one["layers"] == ["1"] and one["ranks"] == [None, 40, 40]
    assert one["no_kernel"] == "gate_proj: it is dense; up_proj: the kernel takes gate and up together"
    assert set(both) & {"mlp", "up_gate", "down"} == {"mlp"} and set(one) & {"mlp", "up_gate", "down"} == {"down"}
    text = kernel_text([both, one])
    assert "ranks dense, 40, 40, tp 2" in text and "no kernel for gate_proj: it is dense" in text
