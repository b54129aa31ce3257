"""`nxdi-svd plan --tp`: the kernel plan of a model."""

import json

import pytest
from tiny_models import save_dense

from nxdi_svd_plugin.cli.main import main


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
        "64",
        "--form",
        "pair",
    ]
    assert main([*command, "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert [plan["tokens"] for plan in kernels] == [1, 64]
    assert kernels[0]["up_gate"]["strips"] == [[1, [1]]]
    assert kernels[0]["down"]["bound"] == "dma"
    assert main(command) == 0
    assert "no device run" in capsys.readouterr().out


def test_a_degree_that_does_not_divide_is_an_error(tiny_llama, capsys):
    assert (
        main(["plan", "--model", str(tiny_llama), "--ratio", "0.05", "--block", "4", "--form", "pair", "--tp", "7"])
        != 0
    )
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
    [plan] = plans_of(model, *ranks, "--tp", "1", "--tokens", "1", "--dtype", "bfloat16", capsys=capsys)
    up_gate, down = plan["up_gate"], plan["down"]
    assert up_gate["hbm_read_bytes"] == 2 * (512 + 2 * (512 * 384 + 384 * 1152))
    assert down["hbm_read_bytes"] == 2 * (1536 + 1152 * 384 + 384 * 512)


def test_pivots_that_are_no_whole_tiles_have_no_kernel_and_the_plan_says_so(tmp_path, capsys):
    model = save_dense(tmp_path / "dense", "llama", hidden_size=512, intermediate_size=1536)
    options = ["--rank=gate_proj=384", "--rank=up_proj=384", "--rank=down_proj=384", "--tp", "2", "--tokens", "1"]
    [plan] = plans_of(model, *options, capsys=capsys)
    assert "multiples of 256" in plan["no_kernel"] and "up_gate" not in plan
    assert main(["plan", "--model", str(model), *options]) == 0
    assert "--block 256 or --form pair" in capsys.readouterr().out
