"""`nxdi-svd plan --tp`: the kernel plan of a model."""

import json

import pytest

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
    ]
    assert main([*command, "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert [plan["tokens"] for plan in kernels] == [1, 64]
    assert kernels[0]["up_gate"]["strips"] == [[1, [1]]]
    assert kernels[0]["down"]["bound"] == "dma"
    assert main(command) == 0
    assert "no device run" in capsys.readouterr().out


def test_a_degree_that_does_not_divide_is_an_error(tiny_llama, capsys):
    assert main(["plan", "--model", str(tiny_llama), "--ratio", "0.05", "--block", "4", "--tp", "7"]) != 0
    assert "does not divide" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_without_tp_nothing_is_said_about_kernels(tiny_llama, capsys, option):
    assert main(["plan", "--model", str(tiny_llama), "--ratio", "0.05", "--block", "4", *option]) == 0
    assert "kernels" not in capsys.readouterr().out
