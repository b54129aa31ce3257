"""A tokenizer.model without tokenizer.json: read where sentencepiece and protobuf are installed, else one sentence."""

import importlib.util
import json
import shutil

import pytest
from tiny_models import SHAPE
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.errors import CheckpointError, MissingExtraError
from nxdi_svd_plugin.modeling import tokenizer as module
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

LIBRARIES = ("sentencepiece", "google.protobuf")


def sentencepiece_alone(source, target):
    """A directory whose tokenizer is a tokenizer.model, empty but for what begins one."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    (target / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return target


@pytest.mark.parametrize(
    ("installed", "missing"), [((), "sentencepiece protobuf"), (("sentencepiece",), "protobuf"), (LIBRARIES, "")]
)
def test_what_reads_it_is_named(installed, missing, tiny_llama, tmp_path, monkeypatch):
    directory, found = sentencepiece_alone(tiny_llama, tmp_path / "model"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: _found(name, installed, found))
    with pytest.raises(MissingExtraError if missing else CheckpointError) as raised:
        load_tokenizer(directory)
    if missing:
        assert f"pip install {missing}, or put the model's tokenizer.json there" in str(raised.value)


def _found(name, installed, found):
    """As importlib says it: None for a module, an exception for one in a package that is not there."""
    if name not in LIBRARIES:
        return found(name)
    if name in installed:
        return "a spec"
    if "." in name:
        raise ModuleNotFoundError(name)
    return None


def test_a_sentencepiece_model_is_read_and_carried(tiny_llama, tmp_path):
    """Its own library gives the ids."""
    trainer = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    directory, text = sentencepiece_alone(tiny_llama, tmp_path / "model"), "the bright lamp and the other lamp, " * 9
    (tmp_path / "text").write_text(text)
    settings = {"model_type": "bpe", "vocab_size": 40, "bos_id": 1, "eos_id": 2, "unk_id": 0, "minloglevel": 2}
    settings["remove_extra_whitespaces"] = False  # as Llama 2 has it; transformers never does
    trainer.SentencePieceTrainer.train(input=tmp_path / "text", model_prefix=str(tmp_path / "made"), **settings)
    shutil.move(tmp_path / "made.model", directory / "tokenizer.model")
    own = trainer.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    said = "the lamp and  the bright other"
    assert load_tokenizer(directory)(said, add_special_tokens=False)["input_ids"] == own.encode(said)
    assert carried(directory)["tokenizer.model"] == (directory / "tokenizer.model").read_bytes()
    assert own.vocab_size() < SHAPE["vocab_size"]


TEXT = "one  two\nthree, it's 4"


@pytest.fixture
def rebuilt(tiny_llama, monkeypatch):
    """Every tokenizer that AutoTokenizer reads splits text as SentencePiece does, whatever its file says."""

    def other(directory, **options):
        made = Tokenizer.from_file(str(directory / "tokenizer.json"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        return PreTrainedTokenizerFast(tokenizer_object=made)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", other)
    monkeypatch.setattr(module, "READS_5", True)
    return Tokenizer.from_file(str(tiny_llama / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids


def test_a_class_that_makes_other_tokens_than_the_file_is_not_used(rebuilt, tiny_llama, caplog):
    """As transformers 5.20 does with a byte-level file whose class is called LlamaTokenizer: see load_tokenizer."""
    assert AutoTokenizer.from_pretrained(tiny_llama).encode(TEXT, add_special_tokens=False) != rebuilt
    assert load_tokenizer(tiny_llama).encode(TEXT, add_special_tokens=False) == rebuilt
    assert "makes other tokens than tokenizer.json, which is used" in caplog.text


def test_where_the_file_alone_is_not_it_either_the_user_is_told(rebuilt, tiny_llama, caplog, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", AutoTokenizer.from_pretrained)
    load_tokenizer(tiny_llama)
    assert "transformers makes other tokens than tokenizer.json; compare perplexities" in caplog.text
