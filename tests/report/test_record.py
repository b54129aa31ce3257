"""report.json is read as it was written, its keys are those of docs/format.md, and damage is one sentence that names
the file and the key."""

import dataclasses
import json

import pytest
from reports import EVALUATION, EVERYTHING, LOSSES, RECOVERY, TASKS, a_report, matrices, mixed

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.cells import error_lines, layer_rows, layer_table
from nxdi_svd_plugin.report.matrix import ADDED, MatrixRecord
from nxdi_svd_plugin.report.peak import peak_memory
from nxdi_svd_plugin.report.record import Report, recorded
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

GROUPED = tuple(dataclasses.replace(m, projection=LowRank(20, ((0, 10),), 2)) for m in matrices())


@pytest.mark.parametrize(
    "report",
    [
        a_report(),
        a_report(matrices=mixed()),
        a_report(matrices=GROUPED),
        a_report(**EVERYTHING),
        *(a_report(**{key: value}) for key, value in EVERYTHING.items()),
        a_report(evaluation=dataclasses.replace(EVALUATION, base=None, relative=None)),
        a_report(layer_losses=dataclasses.replace(LOSSES, rank_correlation=None)),
        a_report(recovery=dataclasses.replace(RECOVERY, teacher=None)),
    ],
    ids=lambda report: "-".join(k for k in EVERYTHING if getattr(report, k)) or "plain",
)
def test_read_is_what_was_written(report, tmp_path):
    report.write(tmp_path)
    first = (tmp_path / "report.json").read_bytes()
    assert Report.read(tmp_path) == report
    Report.read(tmp_path).write(tmp_path)
    assert (tmp_path / "report.json").read_bytes() == first
    assert recorded(tmp_path) == (report.files, report.layers)


def test_the_keys_on_disk():
    found = json.loads(a_report(matrices=mixed(), evaluation=EVALUATION).to_bytes())
    assert list(found) == [
        *("groups", "source", "ratio", "parameters", "matrices", "calibration", "recipe", "versions", "cost", "files"),
        "evaluation",
    ]
    interpolative, pair, dense = found["matrices"][:3]
    assert interpolative | {"energy": 0, "seconds": 0} == {
        **{"layer": 0, "projection": "gate_proj", "width": 1536, "form": "interpolative", "rank": 256},
        **{"pivots": [[0, 128], [256, 384]], "relative_error": 0.125, "discarded": 1.5, "energy": 0, "seconds": 0},
        **{"relative_ridge": 0.0, "predicted_loss": 0.002, "bf16_error": 0.011, "growth": 1.5, "limited": 0.0},
    }
    assert pair["form"] == "pair" and not {"pivots", "growth", "limited"} & set(pair)
    assert dense == {"layer": 0, "projection": "down_proj", "width": 1536, "form": "dense"}
    assert found["groups"] == 1 and json.loads(a_report(matrices=GROUPED).to_bytes())["groups"] == 2
    assert list(found["evaluation"])[:2] == ["model", "perplexity"] and "relative" in found["evaluation"]


def damage(path):
    """A change of the parsed file by a path of keys to (parent, key)."""

    def change(found):
        *parents, key = path
        for parent in parents:
            found = found[parent]
        return found, key

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["cost"], ..., "there is no key 'cost'"),
        (["cost", "threads"], ..., "cost has no key 'threads'"),
        (["cost", "threads"], "two", "cost.threads is 'two'; expected a whole number"),
        (["cost", "threads"], True, "cost.threads is True; expected a whole number"),
        (["cost", "wall_seconds"], None, "cost.wall_seconds is None; expected a number"),
        (["versions", "torch"], 2, "versions.torch is 2; expected a string"),
        (["colour"], "red", "there is an unknown key 'colour'"),
        (["ratio", "colour"], "red", "ratio has an unknown key 'colour'"),
        (["calibration"], [1], "calibration is [1]; expected an object"),
        (["files"], [], "files is []; expected an object"),
        (["groups"], ..., "groups is None; expected a whole number of at least 1"),
        (["groups"], 0, "groups is 0; expected a whole number of at least 1"),
        (["matrices"], {}, "matrices is {}; expected a list"),
        (["matrices", 1], 7, "matrices[1] is 7; expected an object"),
        (["matrices", 1, "form"], "factored", "matrices[1]: projection form 'factored' is unknown"),
        (["matrices", 1, "form"], ..., "matrices[1]: projection form None is unknown"),
        (["matrices", 1, "pivots"], [[0, 20]], "is no pair projection"),
        (["matrices", 1, "rank"], "20", "matrices[1]: rank '20' of a pair projection"),
        (["matrices", 1, "projection"], "gate", "matrices[1]: 0.gate is no projection"),
        (["matrices", 1, "projection"], ..., "matrices[1] has no key 'projection'"),
        (["matrices", 1, "width"], 80, "matrices of layer 0 are gate_proj, up_proj, down_proj of width [80, 90]"),
        (["matrices", 1, "colour"], 1, "matrices[1] has an unknown key 'colour'"),
        (["matrices", 1, "growth"], "big", "matrices[1].growth is 'big'; expected a number"),
        (["evaluation", "base", "nll"], ..., "evaluation.base has no key 'nll'"),
        (["tasks", "rows", 1, "base"], "x", "tasks.rows[1].base is 'x'; expected a number"),
        (["layer_losses", "predicted", 0], None, "layer_losses.predicted[0] is None; expected a number"),
        (["scaling", "trials", 0, "scale"], "x", "scaling.trials[0].scale is 'x'; expected a number"),
        (
            ["scaling", "trials", 0, "kind"],
            "lost",
            "a trial of layer 0 is of kind 'lost', rank 384, width None",
        ),
        (
            ["scaling", "trials", 1, "width"],
            ...,
            "a trial of layer 0 is of kind 'drop', rank None, width None",
        ),
        (["recovery", "history"], [], "recovery has no history"),
        (["recovery", "settings"], {"method": "lora"}, "recovery has no steps"),
        (["recovery", "kept_input"], 0, "recovery.kept_input is 0; expected true or false"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) and value else None,
)
def test_damage_is_one_sentence_with_file_and_key(path, value, message, tmp_path):
    found = json.loads(a_report(**EVERYTHING).to_bytes())
    parent, key = damage(path)(found)
    if value is ...:
        del parent[key]
    else:
        parent[key] = value
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError) as caught:
        Report.read(tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path / 'report.json'}: ") and message in sentence and "\n" not in sentence
    assert sentence.endswith("restore it or compress again with this version")


def test_the_layers_are_a_models():
    with pytest.raises(CheckpointError, match=r"matrices are of the layers \[\]; expected 0 and on without a gap"):
        a_report(matrices=())
    with pytest.raises(CheckpointError, match=r"matrices are of the layers \[0, 2\]"):
        a_report(matrices=tuple(m for m in matrices() if m.layer != 1))
    with pytest.raises(CheckpointError, match=r"matrices of layer 0 are gate_proj, up_proj of width \[90\]"):
        a_report(matrices=matrices(1)[:2])
    with pytest.raises(CheckpointError, match=r"layers with \[1, 2\] groups in one model"):
        a_report(matrices=(*matrices(1), *GROUPED[3:]))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no report.json; only"), (b"", "cannot be read"), (b"[]", "not a JSON object"), (b"\xff", "decode")],
)
def test_a_file_that_cannot_be_read(content, message, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Report.read(tmp_path)


def test_a_form_that_no_reader_knows_is_refused():
    record = matrices(1)[0].to_dict()
    assert MatrixRecord.from_dict(record).projection == LowRank(20)
    with pytest.raises(CheckpointError, match="form 'tensor train' is unknown; this version reads dense, pair, inter"):
        MatrixRecord.from_dict(record | {"form": "tensor train"})


def test_cells_of_every_form():
    assert MatrixRecord(0, "up_proj", 9, DENSE, relative_error=0.0).cell() == "dense"
    assert MatrixRecord(0, "up_proj", 9, LowRank(4)).cell() == "4"
    assert MatrixRecord(0, "up_proj", 9, LowRank(4), relative_error=0.1254).cell() == "4 (12.5 %)"
    assert MatrixRecord(0, "up_proj", 9, LowRank(4, ((0, 4),)), relative_error=0.1, bf16_error=0.01).cell() == (
        "4 (10.0 % + 1.0 %)"
    )
    assert layer_rows(reversed(mixed())) == [
        ["0", "1536", "256 (12.5 % + 1.1 %)", "384 (12.5 % + 1.1 %)", "dense"],
        ["1", "1536", "256 (12.5 % + 1.1 %)", "128 (12.5 % + 1.1 %)", "384 (12.5 % + 1.1 %)"],
    ]
    lines = layer_table(mixed()).splitlines()
    assert len(lines) == 3 and lines[1].split()[0] == "0" and lines[1].endswith("dense")
    assert error_lines(mixed()) == [
        "error that bfloat16 adds to an output: at most 1.10 % (layer 0 gate_proj)",
        "max abs C: at most 1.50 (layer 0 gate_proj)",
    ]
    assert error_lines([MatrixRecord(0, "up_proj", 9, DENSE)]) == []


@pytest.mark.parametrize(
    ("name", "groups", "error", "said"),
    [
        ("down_proj", 3, 0.1, True),
        ("down_proj", 1, 0.1, False),
        ("up_proj", 3, 0.1, False),
        ("down_proj", 3, None, False),
    ],
)
def test_what_the_error_of_groups_is_stands_beside_it(name, groups, error, said):
    record = MatrixRecord(0, name, 9, LowRank(6, (), groups), relative_error=error)
    assert error_lines([record]) == ([ADDED] if said else [])


def test_the_text_has_the_totals():
    text = a_report().to_text()
    assert "ratio asked 0.1000 of the mlp; reached 0.1234 of the MLP, 0.0567 of the model" in text
    assert "12.4 s (20.5 CPU s), peak memory 1.00 GiB" in text


def test_peak_memory_is_that_of_this_process():
    assert 2**20 < peak_memory() < 2**40


def test_tasks_and_texts_are_rows():
    assert a_report(tasks=TASKS).tasks.rows[1].recovery == 0.9
    row = EVALUATION.rows()[0]
    assert (row.task, row.base, row.compressed, row.recovery, row.window) == ("held.txt", 20.0, 25.0, 0.8, 1024)
    assert dataclasses.replace(EVALUATION, base=None).rows() == []
