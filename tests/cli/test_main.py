"""The parser, exit codes, JSON on stdout alone, logging, and that --help costs no heavy import."""

import argparse
import json
import logging
import subprocess
import sys
import types

import pytest

from nxdi_svd_plugin.cli import main as cli
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError, RecipeError

HEAVY = ("torch", "transformers", "numpy", "safetensors", "yaml", "tqdm")


@pytest.fixture
def fake(monkeypatch):
    """A subcommand `fake` whose run() is the function it returns is given."""
    module = types.ModuleType("nxdi_svd_plugin.cli.fake")
    module.add_parser = lambda subparsers: subparsers.add_parser("fake").add_argument("--number", type=int, default=0)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fake",))

    def install(run):
        module.run = run

    return install


def raising(error):
    def run(*_args, **_options):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckpointError("no"), 1), (RecipeError("no"), 2), (MissingExtraError("no"), 3), (KeyboardInterrupt(), 130)],
)
def test_exit_code_of_an_error(fake, capsys, error, code):
    fake(raising(error))
    assert cli.main(["fake"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("nxdi-svd fake: interrupted\n" if code == 130 else "nxdi-svd fake: error: no\n")


def test_an_interrupted_command_says_how_to_continue(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("nxdi_svd_plugin.compress.run.run.compress", raising(KeyboardInterrupt()))
    assert cli.main(["compress", "--model", "a", "--output", str(tmp_path / "out")]) == 130
    error = "nxdi-svd compress: interrupted; the same command with --resume continues\n"
    assert capsys.readouterr().err == error


def test_json_error_is_one_object_on_stdout(fake, capsys):
    fake(raising(CheckpointError("broken")))
    cli.main(["fake", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "broken", "type": "CheckpointError", "exit_code": 1}


def test_json_keeps_stray_prints_and_logs_off_stdout(fake, capsys):
    def run(args):
        print("chatter of a library")
        logging.getLogger("nxdi_svd_plugin.somewhere").info("progress")
        emit(args, {"number": args.number}, "text")
        return 0

    fake(run)
    assert cli.main(["fake", "--json", "--number", "7"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"number": 7}
    assert "chatter" in err and "progress" in err
    assert cli.main(["fake"]) == 0
    assert capsys.readouterr().out == "chatter of a library\ntext\n"


def test_log_level_file_and_quiet(fake, tmp_path, capsys):
    def run(args):
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("nxdi_svd_plugin.x"), level)(f"a {level}")
        return 0

    fake(run)
    cli.main(["fake", "--log-level", "warning", "--log-file", str(tmp_path / "log")])
    assert capsys.readouterr().err == "a warning\na error\n"
    assert [line.split()[2] for line in (tmp_path / "log").read_text().splitlines()] == ["WARNING", "ERROR"]
    cli.main(["fake", "--quiet"])
    assert capsys.readouterr().err == "a error\n"
    handlers = logging.getLogger("nxdi_svd_plugin").handlers
    assert [type(handler).__name__ for handler in handlers] in ([], ["NullHandler"])


def test_log_file_that_cannot_be_opened_is_wrong_usage(fake, tmp_path, capsys):
    fake(lambda args: 0)
    assert cli.main(["fake", "--log-file", str(tmp_path / "no" / "log")]) == 2
    assert "cannot be opened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["doctr"], "unknown command 'doctr'; did you mean doctor?"),
        (["doctor", "--jsn"], "unknown argument '--jsn'; did you mean --json?"),
        (["doctor", "--log-file"], "expected one argument"),
        (["doctor", "stray"], "unknown argument 'stray'"),
        (["evaluate", "--tasks", "x", "--fewshot", "-1"], "-1 is less than 0"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_usage_exits_2_with_a_suggestion(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_is_instant_because_nothing_heavy_is_imported(command):
    argv = [*command.split(), "--help"]
    code = f"""
import sys
from nxdi_svd_plugin.cli.main import main
try:
    main({argv!r})
except SystemExit as exit:
    assert exit.code == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "examples:" in done.stdout and "usage: nxdi-svd" in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_options_and_examples_of_itself(name):
    parser, choices, modules = cli.build_parser()
    options = choices[name]._option_string_actions
    assert {"--json", "--log-level", "--log-file", "--quiet"} <= set(options)
    assert f"nxdi-svd {name}" in choices[name].epilog
    assert callable(modules[name].run)
    assert isinstance(parser, argparse.ArgumentParser)


def test_as_a_program():
    def run(*argv):
        return subprocess.run(
            [sys.executable, "-m", "nxdi_svd_plugin.cli.main", *argv], capture_output=True, text=True, check=False
        )

    assert run("--version").stdout.startswith("nxdi-svd-plugin 0.")
    assert run("nonsense").returncode == 2
    assert "nxdi-svd doctor" in run("--help").stdout
