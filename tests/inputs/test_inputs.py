"""Every case of the list gets what the list says, runs nothing that the input brings, and the page shows the list."""

import io

import pytest
from cases import PAGE, Folder, page, sections

from nxdi_svd_plugin.cli.main import main

CASES = [case for cases in sections().values() for case in cases]


def run(case):
    """Exit code of a case's command line; its progress is shown only where a warning is expected."""
    quiet = [] if case.says and not case.code else ["--quiet"]
    try:
        return main([*case.command.split(), *quiet])
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command.split()[0]}: {case.kind}")
def test_an_input_gets_what_the_table_says(case, tiny_llama, tiny_qwen3, tiny_svd_llama, tmp_path, monkeypatch, capfd):
    case.build(Folder(tmp_path, {"llama": tiny_llama, "qwen3": tiny_qwen3, "svd_llama": tiny_svd_llama}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # whoever asks is told yes
    code, error = run(case), capfd.readouterr().err
    assert (code, case.says in error) == (case.code, True), error
    assert case.says or not error
    assert not code or code == 2 or error.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_no_two_cases_share_a_name():
    assert len({(case.kind, case.command) for case in CASES}) == len(CASES)


def test_the_page_is_what_the_list_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/inputs/cases.py"
