"""report.md: every number of report.json and of the evaluations is in the tables, the figures are real PNG files."""

import dataclasses
import json
import struct

import pytest
from reports import EVALUATION, LOSSES, RECOVERY, SCALING, TASKS, a_report, matrices

from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError
from nxdi_svd_plugin.report import figures
from nxdi_svd_plugin.report.markdown import Entry, markdown, read_entry, read_measured, table, write_report
from nxdi_svd_plugin.report.measured import Row
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

needs_matplotlib = pytest.mark.usefixtures("matplotlib")


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def report(asked=0.1, **parts):
    """Four layers whose rank and error rise; the last down projection is dense."""
    records = [
        dataclasses.replace(m, projection=LowRank(16 * (m.layer + 1)), relative_error=0.01 * (m.layer + 1))
        for m in matrices(4)
    ]
    records[-1] = dataclasses.replace(records[-1], projection=DENSE, relative_error=None)
    ratio = dataclasses.replace(a_report().ratio, asked=asked, mlp=asked + 0.001, model=asked / 2)
    return a_report(**{"ratio": ratio, "matrices": tuple(records), **parts})


BOOK, PIQA = TASKS.rows


def save(folder, content, evaluation=None):
    folder.mkdir()
    content.write(folder)
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation.to_dict()))
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
    assert "# Compression of tiny" in text and "| 0 | 90 | 16 (1.0 %) | 16 (1.0 %) | 16 (1.0 %) |" in text
    assert "| 3 | 90 | 64 (4.0 %) | 64 (4.0 %) | dense |" in text
    assert "0.1000 of the mlp | 0.1010 | 0.0500 | 2.0 → 1.9 | " in text and " | 12 | 1.00 |" in text
    assert "32768 tokens of wiki.txt (sha256 abababababab" in text and "## Quality" not in text


@needs_matplotlib
def test_several_models_with_evaluations_and_recovery(tmp_path):
    entries = []
    for i, ratio in enumerate((0.2, 0.05)):
        folder = save(tmp_path / f"m{i}", report(ratio, recovery=RECOVERY), TASKS)
        entries.append(read_entry(folder, [folder / "evaluation.json"]))
    files = write_report(entries, tmp_path / "all")
    assert [path.name for path in files[1:]] == ["report-quality.png", "report-layers-1.png", "report-layers-2.png"]
    assert all(png_size(path)[0] > 800 for path in files[1:])
    text = files[0].read_text()
    assert text.index("| m1 | 0.05") < text.index("| m0 | 0.2"), "by rising ratio"
    assert "| m0 | book | perplexity | 20 | 25 | 0.800 |" in text
    assert "| m0 | piqa | acc | 0.6 ± 0.011 | 0.54 ± 0.012 | 0.900 |" in text
    assert "| alpaca.jsonl | distillation | lora | 75 (50) | 30.500 → 20.250 | trained | 61 |" in text
    images = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert images == {path.name for path in files[1:]}


def test_series_start_from_the_rows_and_follow_the_ratio():
    entries = [Entry(str(r), report(r), [dataclasses.replace(BOOK, compressed=20 + 100 * r)]) for r in (0.2, 0.05)]
    compressed, base = figures.series(entries, "perplexity")
    assert compressed == {"book": [(pytest.approx(0.051), 25.0), (pytest.approx(0.201), 40.0)]}
    assert [value for _, value in base["book"]] == [20.0, 20.0]
    assert figures.series(entries, "acc") == ({}, {})


def test_models_made_otherwise_are_other_lines():
    """Before and after recovery, another recipe, another window: never one line through points of one ratio."""
    kinds = {"form": "pair", "objective": "input"}, {"form": "interpolative", "objective": "two_sided"}
    entries = [Entry(str(i), report(0.1, recipe=kind), [BOOK]) for i, kind in enumerate(kinds)]
    entries.append(Entry("2", report(0.1, recipe=kinds[1], recovery=RECOVERY), [BOOK]))
    lines, base = figures.series(entries, "perplexity")
    names = ["book, pair input", "book, interpolative two_sided", "book, interpolative two_sided recovered"]
    assert list(lines) == list(base) == names and all(len(points) == 1 for points in lines.values())
    windows = [Entry(str(w), report(0.1), [dataclasses.replace(BOOK, window=w)]) for w in (512, 1024)]
    assert list(figures.series(windows, "perplexity")[0]) == ["book, window 512", "book, window 1024"]


@needs_matplotlib
def test_a_dense_layer_interrupts_the_lines(tmp_path, monkeypatch):
    drawn = []
    original = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (drawn.append(figure), original(figure, path)))
    records = [dataclasses.replace(record, bf16_error=0.01) for record in report().matrices]
    records[2] = dataclasses.replace(records[2], projection=DENSE, relative_error=None)
    figures.layers(records, "m", tmp_path / "layers.png")
    lines = [list(line.get_ydata()) for line in drawn[0].axes[0].lines]
    assert lines[0] == pytest.approx([1, 2, 3, 4]) and lines[1] == pytest.approx([1, 1, 1, 1])
    assert [y != y for y in lines[4]] == [True, False, False, True], "dense in layers 0 and 3"


def test_a_table_has_as_many_cells_as_its_head():
    lines = markdown([Entry("m", report(recovery=RECOVERY), TASKS.rows, LOSSES)]).splitlines()
    width = 0
    for line in lines:
        cells = line.count("|") - 1 if line.startswith("|") else 0
        assert cells == width or width == 0 or cells == 0
        width = cells
    assert table(("a", "b"), [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "e.json cannot be read as JSON"),
        ("[]", "e.json cannot be read as JSON: not a JSON object"),
        ("{}", "e.json has no pair of base and compressed"),
        ('{"perplexity": 3.0}', "e.json has no pair of base and compressed"),
        ('{"perplexity": 3.0, "base": {}}', "e.json: there is no key 'model'; make it with"),
        ('{"rows": [{"task": "x"}], "settings": {}}', r"e.json: rows\[0\] has no key 'metric'; make it with"),
    ],
)
def test_what_is_no_evaluation_is_refused(content, message, tmp_path):
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_measured(tmp_path / "e.json")


def test_without_a_report_there_is_no_entry(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no report\.json"):
        read_entry(tmp_path)


def test_without_matplotlib_the_pip_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match=r"nxdi-svd-plugin\[plots\]"):
        write_report([Entry("m", report())], tmp_path)


def test_recorded_evaluations_and_files_are_read(tmp_path):
    pairs = dataclasses.replace(TASKS, rows=(PIQA,))
    folder = save(tmp_path / "m", report(evaluation=EVALUATION, tasks=pairs, layer_losses=LOSSES), EVALUATION)
    entry = read_entry(folder)
    assert [row.task for row in entry.rows] == ["held.txt", "piqa"] and entry.rows[0].recovery == 0.8
    assert entry.losses == LOSSES
    assert [row.task for row in read_entry(folder, [folder / "evaluation.json"]).rows][2:] == ["held.txt"]
    (folder / "losses.json").write_text(json.dumps(dataclasses.replace(LOSSES, tokens=7).to_dict()))
    assert read_entry(folder, [folder / "losses.json"]).losses.tokens == 7
    alone = report(evaluation=dataclasses.replace(EVALUATION, base=None, relative=None))
    assert read_entry(save(tmp_path / "n", alone)).rows == []


def test_losses_of_layers_are_told():
    text = markdown([Entry("m", report(), (), LOSSES)])
    assert "predicted and measured loss 1.000; sums of all layers: predicted 0.3, measured 0.36 nats" in text
    assert "on 2048 tokens of held.txt in windows of 512, float32." in text


def test_scaled_losses_are_told():
    records = tuple(dataclasses.replace(m, predicted_loss=0.002) for m in report().matrices)
    text = markdown([Entry("m", a_report(matrices=records, scaling=SCALING))])
    assert "predicted 0.024, scaled 0.0258 nats per token, by what each layer changed alone costs on 256 tokens" in text
    assert "| 0 | 0.006 | 0.0078 | 0.01 | 0.013 | 0.02 | 0.05 |" in text and "| 3 | 0.006 | 0.006 |  |  |  |  |" in text
    assert "scaled" not in markdown([Entry("m", report())])


def test_a_row_without_recovery_has_a_dash():
    row = Row("t", "bits_per_byte", 3, 0.0, None, 0.5, None, None)
    assert "| m | t | bits_per_byte | 0 | 0.5 | - |" in markdown([Entry("m", report(), [row])])
