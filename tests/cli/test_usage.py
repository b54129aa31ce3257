"""How a command line may be written: global options first, help and version as words, MODEL anywhere."""

import json
import sys
import types

import pytest

from nxdi_svd_plugin.cli import main as cli
from nxdi_svd_plugin.cli.main import command_first


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        ("--json doctor", "doctor --json"),
        ("--quiet --log-level error plan x", "plan --quiet --log-level error x"),
        ("--log-level=error plan x", "plan --log-level=error x"),
        ("--log-file f neuron run --json", "neuron --log-file f run --json"),
        ("help plan", "plan --help"),
        ("help", "--help"),
        ("--json help plan", "plan --help"),
        ("version", "--version"),
        ("--json", "--json"),
        ("plan --json help", "plan --json help"),
        ("--log-file", "--log-file"),
    ],
)
def test_what_stands_before_the_command(argv, same):
    assert command_first(argv.split()) == same.split()


def test_global_options_before_the_command_work(capsys):
    assert cli.main(["--json", "--quiet", "doctor"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["plugin"]


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_version(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("nxdi-svd-plugin 0.")


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["help", "verify"])
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("usage: nxdi-svd verify")


@pytest.mark.parametrize(
    "argv",
    ["plan --rato 1", "plan --ratio nan", "plan x --log-level loud", "", "nonsense", "compress x", "generate x"],
)
def test_a_usage_error_begins_with_what_is_wrong(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv.split())
    first, second, rest = capsys.readouterr().err.split("\n")
    assert exit.value.code == 2 and first.startswith("nxdi-svd") and ": error: " in first
    assert "--help` shows options and examples" in second and rest == ""


@pytest.mark.parametrize(
    "argv",
    [
        "--model {m} --block 2",
        "{m} --block 2",
        "--block 2 {m}",
        "--ratio 0.2 --block 2 {m} --tp 2",
        "--model={m} --block 2",
    ],
)
def test_a_model_may_stand_anywhere(argv, tiny_llama, capsys):
    assert cli.main(["plan", *argv.format(m=tiny_llama).split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "model"


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_a_directory_may_be_named_too(command, tiny_svd_llama, capsys):
    model = str(tiny_svd_llama)
    codes = [cli.main([command, *words, "--json"]) for words in ([model], ["--model", model])]
    first, second = capsys.readouterr().out.split("\n}\n", 1)
    assert codes[0] == codes[1] and json.loads(first + "}").keys() == json.loads(second).keys()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("plan", "MODEL is missing"),
        ("plan a b", "unknown argument 'b'"),
        ("plan a --model b", "two models are given, a and b; give one"),
        ("plan --blok 2 a", "unknown argument '--blok'; did you mean --block?"),
    ],
)
def test_none_or_two_models_are_wrong_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv.split())
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["plan --ratio", "plan --tau", "generate --prompt a --temperature", "bench --ratio"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(option, value, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*option.split()[:-1], f"{option.split()[-1]}={value}"])
    assert exit.value.code == 2 and f"{value} is not a finite number" in capsys.readouterr().err


def test_the_home_directory_may_be_written_as_a_tilde(tiny_llama, tmp_path, monkeypatch, capsys):
    (tmp_path / "model").symlink_to(tiny_llama)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("block: 2")
    assert cli.main(["plan", "--model=~/model", "--recipe=~/r.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["block"] == 2


def test_every_option_that_names_a_file_takes_a_tilde(monkeypatch):
    """Options whose placeholder is FILE or DIR, whatever the command."""
    monkeypatch.setenv("HOME", "/home/of/me")
    for name, parser in cli.build_parser()[1].items():
        for action in parser._actions:
            if action.metavar in ("FILE", "DIR", "MODEL") and "--log-file" not in action.option_strings:
                assert str(action.type("~/x")) == "/home/of/me/x", (name, action.dest)


def test_a_fake_command_without_a_model_needs_none(monkeypatch):
    module = types.ModuleType("nxdi_svd_plugin.cli.fake")
    module.add_parser = lambda subparsers: subparsers.add_parser("fake")
    module.run = lambda args: 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fake",))
    assert cli.main(["fake"]) == 0
