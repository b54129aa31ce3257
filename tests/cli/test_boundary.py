"""Exceptions of other people's code are one sentence, our bugs keep their traceback, and output that cannot be written
is said."""

import io
import json
import subprocess
import sys
import types

import pytest

from nxdi_svd_plugin.cli import boundary
from nxdi_svd_plugin.cli import main as cli
from nxdi_svd_plugin.cli.output import emit

OURS = {"__name__": "nxdi_svd_plugin.cli.fake"}


@pytest.fixture
def command(monkeypatch):
    """A subcommand `fake` that raises an exception in the code of a package, ours or another."""
    module = types.ModuleType("nxdi_svd_plugin.cli.fake")
    module.add_parser = lambda subparsers: subparsers.add_parser("fake")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fake",))

    def install(error, package):
        inner = {"__name__": package, "error": error}
        exec("def fail():\n    raise error", inner)
        outer = {**OURS, "fail": inner["fail"]}
        exec("def run(args):\n    fail()", outer)
        module.run = outer["run"]

    return install


KINDS = [
    (IndexError("list index out of range"), 1, "transformers stopped with IndexError (list index out of range)"),
    (
        ImportError("\nFlashAttention2 has been toggled on,\n but it cannot be used"),
        3,
        "a Python package is missing or does not fit (FlashAttention2 has been toggled on, but it cannot be used)",
    ),
    (OSError(28, "No space left on device", "/x"), 1, "the system refused ([Errno 28] No space left on device: '/x')"),
    (MemoryError(), 1, "not enough memory (MemoryError)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 1, "not enough memory (DefaultCPU"),
    (UnicodeEncodeError("ascii", "é", 0, 1, "no"), 1, "transformers stopped with UnicodeEncodeError ('ascii' codec"),
]


@pytest.mark.parametrize(("error", "code", "said"), KINDS, ids=lambda value: type(value).__name__)
def test_an_exception_of_another_package_is_one_sentence(command, error, code, said, capsys):
    command(error, "transformers.models.auto")
    assert cli.main(["fake"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(f"nxdi-svd fake: error: {said}") and shown.count("\n") == 1
    assert cli.main(["fake", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert said in found["error"] and found["exit_code"] == code and found["type"] == type(error).__name__


@pytest.mark.parametrize("package", ["transformers", "nxdi_svd_plugin.x"])
def test_debug_shows_the_traceback_of_every_exception(command, package):
    command(OSError("x"), package)
    with pytest.raises(OSError, match="x"):
        cli.main(["fake", "--log-level", "debug"])


def test_a_bug_of_ours_is_not_hidden(command):
    command(ZeroDivisionError(), "nxdi_svd_plugin.compress.run.run")
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def test_a_long_message_is_cut(command, capsys):
    command(ValueError("word " * 999), "torch")
    cli.main(["fake"])
    assert len(capsys.readouterr().err) < boundary.LONGEST + 120


def printing(monkeypatch, text, payload):
    module = types.ModuleType("nxdi_svd_plugin.cli.fake")
    module.add_parser = lambda subparsers: subparsers.add_parser("fake")
    module.run = lambda args: emit(args, payload, text) or 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", ("fake",))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_letter_shows_its_code(encoding, monkeypatch):
    printing(monkeypatch, "café ☕ \ud83d", {})
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert cli.main(["fake"]) == 0
    assert raw.getvalue().decode(encoding).startswith("caf")


def test_a_full_output_is_said(monkeypatch, capsys):
    printing(monkeypatch, "x", {})
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["fake"]) == 1
    assert "its result cannot be printed (No space left on device)" in capsys.readouterr().err


def test_a_closed_output_is_said(monkeypatch, capsys):
    printing(monkeypatch, "x", {})
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["fake"]) == 1
    assert "standard output is closed" in capsys.readouterr().err


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-", ">/dev/full 2>&1", "| true"])
def test_as_a_program_nothing_follows_the_sentence(redirection):
    """Python itself complains at exit about what it could not flush."""
    line = f"{sys.executable} -m nxdi_svd_plugin.cli.main doctor {redirection}; echo $? >&3"
    done = subprocess.run(["bash", "-c", f"exec 3>&1; {line}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1 and done.stdout.strip()[-1] in "01"
