"""report.md: every number of report.json and of the evaluations is in the tables, the figures are real PNG files."""

import json
import struct

import pytest

from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError
from nxdi_svd_plugin.report import figures
from nxdi_svd_plugin.report.markdown import Entry, markdown, read_entry, rows_of, table, write_report
from nxdi_svd_plugin.stored.layers import PROJECTIONS

needs_matplotlib = pytest.mark.usefixtures("matplotlib")


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def report(asked=0.1, layers=4):
    matrices = [
        {"layer": i, "projection": name, "form": "factored", "rank": 16 * (i + 1), "relative_error": 0.01 * (i + 1)}
        for i in range(layers)
        for name in PROJECTIONS
    ]
    matrices[-1] = {"layer": layers - 1, "projection": "down_proj", "form": "dense", "rank": 0, "relative_error": 0.0}
    return {
        "source": {"name": "tiny"},
        "ratio": {"asked": asked, "target": "mlp", "mlp": asked + 0.001, "model": asked / 2},
        "parameters": {"mlp_dense": 10**6, "mlp": 9 * 10**5, "model_dense": 2 * 10**6, "model": 19 * 10**5},
        "matrices": matrices,
        "calibration": {"text": "built-in", "sha256": "ab" * 32, "tokens": 4096, "seed": 0},
        "cost": {"wall_seconds": 12.4, "peak_bytes": 2**30, "device": "cpu"},
    }


ROWS = [
    {"task": "book", "metric": "perplexity", "base": 20.0, "compressed": 25.0, "recovery": 0.8},
    {
        **{"task": "piqa", "metric": "acc", "base": 0.6, "base_stderr": 0.011},
        **{"compressed": 0.54, "compressed_stderr": 0.012, "recovery": 0.9},
    },
]
RECOVERY = {
    **{"perplexity": {"input": 30.0, "trained": 27.5, "output": 27.5}, "kept_input": False, "best_step": 50},
    **{"history": [{"step": 0}, {"step": 75}], "data": {"text": "alpaca.jsonl"}, "loss": "next token"},
    **{"settings": {"method": "lora"}, "seconds": 61.0},
}


def save(folder, content, evaluation=None):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(content))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@needs_matplotlib
def test_one_model_without_evaluation(tmp_path):
    files = write_report([read_entry(save(tmp_path / "m", report()))], tmp_path / "m")
    assert [path.name for path in files] == ["report.md", "report-layers.png"]
    width, height = png_size(files[1])
    assert width > 800 and height > 400
    text = files[0].read_text()
    assert "# Compression of tiny" in text and "| 0 | 16 (1.0 %) | 16 (1.0 %) | 16 (1.0 %) |" in text
    assert "| 3 | 64 (4.0 %) | 64 (4.0 %) | dense |" in text
    assert "0.1000 of the mlp | 0.1010 | 0.0500 | 2.0 → 1.9 | 12 | 1.00 |" in text
    assert "4096 tokens of built-in (sha256 abababababab" in text and "## Quality" not in text


@needs_matplotlib
def test_several_models_with_evaluations_and_recovery(tmp_path):
    entries = []
    for i, ratio in enumerate((0.2, 0.05)):
        folder = save(tmp_path / f"m{i}", report(ratio) | {"recovery": RECOVERY}, {"rows": ROWS})
        entries.append(read_entry(folder, [folder / "evaluation.json"]))
    files = write_report(entries, tmp_path / "all")
    assert [path.name for path in files[1:]] == ["report-quality.png", "report-layers-1.png", "report-layers-2.png"]
    assert all(png_size(path)[0] > 800 for path in files[1:])
    text = files[0].read_text()
    assert text.index("| m1 | 0.05") < text.index("| m0 | 0.2"), "by rising ratio"
    assert "| m0 | book | perplexity | 20 | 25 | 0.800 |" in text
    assert "| m0 | piqa | acc | 0.6 ± 0.011 | 0.54 ± 0.012 | 0.900 |" in text
    assert "| alpaca.jsonl | next token | lora | 75 (50) | 30.000 → 27.500 | trained | 61 |" in text
    images = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert images == {path.name for path in files[1:]}


def test_series_start_from_the_rows_and_follow_the_ratio():
    entries = [Entry(str(r), report(r), [ROWS[0] | {"compressed": 20 + 100 * r}]) for r in (0.2, 0.05)]
    compressed, base = figures.series(entries, "perplexity")
    assert compressed == {"book": [(pytest.approx(0.051), 25.0), (pytest.approx(0.201), 40.0)]}
    assert [value for _, value in base["book"]] == [20.0, 20.0]
    assert figures.series(entries, "acc") == ({}, {})


def test_models_made_otherwise_are_other_lines():
    """Before and after recovery, another recipe, another window: never one line through points of one ratio."""
    kinds = {"form": "pair", "objective": "input"}, {"form": "interpolative", "objective": "two_sided"}
    entries = [Entry(str(i), report(0.1) | {"recipe": kind}, [ROWS[0]]) for i, kind in enumerate(kinds)]
    entries.append(Entry("2", report(0.1) | {"recipe": kinds[1], "recovery": RECOVERY}, [ROWS[0]]))
    lines, base = figures.series(entries, "perplexity")
    names = ["book, pair input", "book, interpolative two_sided", "book, interpolative two_sided recovered"]
    assert list(lines) == list(base) == names and all(len(points) == 1 for points in lines.values())
    windows = [Entry(str(w), report(0.1), [ROWS[0] | {"window": w}]) for w in (512, 1024)]
    assert list(figures.series(windows, "perplexity")[0]) == ["book, window 512", "book, window 1024"]


@needs_matplotlib
def test_a_dense_layer_interrupts_the_lines(tmp_path, monkeypatch):
    drawn = []
    original = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (drawn.append(figure), original(figure, path)))
    matrices = [record | {"bf16_error": 0.01} for record in report()["matrices"]]
    matrices[2] = {"layer": 0, "projection": "down_proj", "form": "dense"}
    figures.layers(matrices, "m", tmp_path / "layers.png")
    lines = [list(line.get_ydata()) for line in drawn[0].axes[0].lines]
    assert lines[0] == pytest.approx([1, 2, 3, 4]) and lines[1] == pytest.approx([1, 1, 1, 1])
    assert [y != y for y in lines[4]] == [True, False, False, True], "dense in layers 0 and 3"


def test_a_table_has_as_many_cells_as_its_head():
    lines = markdown([Entry("m", report() | {"recovery": RECOVERY}, ROWS)]).splitlines()
    width = 0
    for line in lines:
        cells = line.count("|") - 1 if line.startswith("|") else 0
        assert cells == width or width == 0 or cells == 0
        width = cells
    assert table(("a", "b"), [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_what_is_no_report_or_evaluation_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"report\.json cannot be read as JSON"):
        read_entry(tmp_path)
    with pytest.raises(CheckpointError, match="has no ratio, parameters"):
        read_entry(save(tmp_path / "m", {"matrices": [], "source": {}, "calibration": {}, "cost": {}}))
    with pytest.raises(CheckpointError, match="has no pair of base and compressed"):
        rows_of({"perplexity": 3.0}, tmp_path / "e.json")


def test_without_matplotlib_the_pip_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match=r"nxdi-svd-plugin\[plots\]"):
        write_report([Entry("m", report())], tmp_path)


def test_recorded_evaluations_are_read(tmp_path):
    text = {"perplexity": 25.0, "base": {"perplexity": 20.0}, "text": {"name": "book"}, "window": 512}
    content = report() | {"evaluation": text, "tasks": {"rows": [ROWS[1]], "settings": {}}}
    entry = read_entry(save(tmp_path / "m", content))
    assert [row["task"] for row in entry.rows] == ["book", "piqa"] and entry.rows[0]["recovery"] == 0.8
    alone = report() | {"evaluation": {"perplexity": 25.0, "text": {"name": "book"}}}
    assert read_entry(save(tmp_path / "n", alone)).rows == []
