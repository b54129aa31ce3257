"""Shards at planned offsets are what safetensors reads; an output is complete or recognisably unfinished."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from nxdi_svd_plugin.checkpoint.carried import carried_files
from nxdi_svd_plugin.checkpoint.layout import index_json, plan_shards, tensor_bytes
from nxdi_svd_plugin.checkpoint.names import UNFINISHED
from nxdi_svd_plugin.checkpoint.writer import Writer, prepare_output
from nxdi_svd_plugin.errors import CheckpointError

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def tensor(dtype, shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=12), st.integers(1, 400), st.randoms())
def test_any_tensors_in_any_order_come_back(tmp_path_factory, kinds, shard_size, random):
    """Read back by safetensors itself and by the index, whatever the order of writing."""
    output = tmp_path_factory.mktemp("out")
    prepare_output(output, output.parent / "source", resume=False, overwrite=False)
    entries = {f"t{i}": kind for i, kind in enumerate(kinds)}
    values = {name: tensor(*kind, seed=i) for i, (name, kind) in enumerate(entries.items())}
    writer = Writer(output, entries, shard_size)
    order = list(entries)
    random.shuffle(order)
    for name in order:
        writer.write(name, values[name])
    writer.sync(order)
    writer.finish({"report.json": b"{}"}, {"model_type": "x"})
    found = {}
    for shard in writer.shards:
        found |= load_file(output / shard.name)
        assert (output / shard.name).stat().st_size == shard.size
        assert len(shard.offsets) == 1 or shard.size - len(shard.header) <= shard_size
        assert all(start % entries[name][0].itemsize == 0 for name, start in shard.offsets.items())
    assert set(found) == set(values)
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    index = output / "model.safetensors.index.json"
    assert index.exists() == (len(writer.shards) > 1)
    if index.exists():
        content = json.loads(index.read_text())
        assert all(name in load_file(output / file) for name, file in content["weight_map"].items())
        assert content["metadata"]["total_size"] == sum(tensor_bytes(*kind) for kind in kinds)
    assert not (output / UNFINISHED).exists()


def test_shards_are_named_as_transformers_names_them():
    entries = {name: (torch.float32, (10,)) for name in "abc"}
    assert [s.name for s in plan_shards(entries, 1000)] == ["model.safetensors"]
    shards = plan_shards(entries, 50)
    assert [s.name for s in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index_json(plan_shards(entries, 1000), entries) is None


def test_transformers_reads_the_format_tag(tmp_path):
    prepare_output(tmp_path / "out", tmp_path / "source", resume=False, overwrite=False)
    writer = Writer(tmp_path / "out", {"a": (torch.float32, (2,))}, 1000)
    writer.write("a", torch.ones(2))
    writer.finish({}, {})
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.fixture
def writer(tmp_path):
    prepare_output(tmp_path / "out", tmp_path / "source", resume=False, overwrite=False)
    return Writer(tmp_path / "out", {"a": (torch.float16, (2, 3))}, 1000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, 2, dtype=torch.float16), r"a is torch.float16 \[3, 2\]; planned was torch.float16 \[2, 3\]"),
        (torch.ones(2, 3), "a is torch.float32"),
        (torch.full((2, 3), math.nan, dtype=torch.float16), "a is not finite in torch.float16; use a wider dtype"),
        (torch.full((2, 3), 1e6).half(), "a is not finite"),
    ],
)
def test_a_tensor_that_was_not_planned_or_is_not_finite(writer, value, message):
    with pytest.raises(CheckpointError, match=message):
        writer.write("a", value)


def test_until_config_json_is_there_it_is_no_model(writer, tmp_path):
    writer.write("a", torch.ones(2, 3, dtype=torch.float16))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [UNFINISHED]
    assert (tmp_path / "out" / UNFINISHED / "model.safetensors").stat().st_size == writer.shards[0].size


def test_a_working_file_of_full_size_without_header_is_repaired(writer, tmp_path):
    """Killed between reserving the space and writing the header."""
    path = tmp_path / "out" / UNFINISHED / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    again = Writer(tmp_path / "out", writer.entries, 1000)
    again.write("a", torch.ones(2, 3, dtype=torch.float16))
    again.finish({}, {})
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a"], torch.ones(2, 3, dtype=torch.float16))


def test_reopening_keeps_what_was_written(writer, tmp_path):
    writer.write("a", torch.ones(2, 3, dtype=torch.float16))
    Writer(tmp_path / "out", writer.entries, 1000).finish({}, {})
    assert load_file(tmp_path / "out" / "model.safetensors")["a"].sum() == 6


def refused(output, source, message, **flags):
    with pytest.raises(CheckpointError, match=message):
        prepare_output(output, source, **{"resume": False, "overwrite": False, **flags})


def test_outputs_that_are_refused(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for inside in (source, source / "out", tmp_path, source / ".." / "source"):
        refused(inside, source, "must be separate directories: the source is never touched")
    (tmp_path / "link").symlink_to(source)
    refused(tmp_path / "link" / "out", source, "separate directories")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", source, "is a file")
    refused(tmp_path / "file" / "out", source, "cannot write")
    refused(tmp_path / "out", source, "contradict", resume=True, overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    refused(mine, source, "holds files already; give another directory")
    refused(mine, source, "holds no compressed model", overwrite=True)
    refused(mine, source, "no unfinished compression to resume", resume=True)
    (mine / "config.json").write_text('{"model_type": "llama"}')  # somebody's dense model, or another program's config
    refused(mine, source, "holds no compressed model, and --overwrite deletes nothing else", overwrite=True)
    (mine / "config.json").write_text("{")
    refused(mine, source, "holds no compressed model", overwrite=True)
    assert (mine / "thesis.tex").read_text() == "x"


def test_overwrite_replaces_a_model_and_an_unfinished_one(tmp_path):
    output = tmp_path / "out"
    (output / "sub").mkdir(parents=True)
    (output / "config.json").write_text('{"svd_config": {}}')
    refused(output, tmp_path / "source", "holds a compressed model already; add --overwrite to replace it")
    prepare_output(output, tmp_path / "source", resume=False, overwrite=True)
    assert [p.name for p in output.iterdir()] == [UNFINISHED]
    refused(output, tmp_path / "source", "an unfinished compression.* add --resume to continue it")
    prepare_output(output, tmp_path / "source", resume=False, overwrite=True)
    assert [p.name for p in output.iterdir()] == [UNFINISHED]


def test_only_tokenizer_generation_config_and_template_are_carried(tmp_path):
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "optimizer.pt", "README.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "tokenizer.model").write_bytes(b"GGUF" + bytes(100))
    assert sorted(carried_files(tmp_path)) == ["chat_template.jinja", "generation_config.json", "tokenizer.json"]
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    assert "tokenizer.model" in carried_files(tmp_path)
