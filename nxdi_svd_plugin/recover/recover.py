"""Recovery: train the factors of a compressed directory on text and write them as another compressed directory.

The result is never worse than the input on the validation text: both are measured with the parameters as they are
stored, and if training did not help, the output holds the input's tensors.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.names import (
    CONFIG,
    ORDER,
    REPORT,
    UNFINISHED,
    carried_files,
    projection_prefix,
    read_json,
)
from nxdi_svd_plugin.checkpoint.reader import Reader, file_sha256
from nxdi_svd_plugin.checkpoint.writer import Writer, prepare_output
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError
from nxdi_svd_plugin.evaluate.perplexity import check_window
from nxdi_svd_plugin.factorize.interpolative import GROWTH_LIMIT
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained, load_tokenizer
from nxdi_svd_plugin.recover import lora
from nxdi_svd_plugin.recover.data import Windows, load_windows
from nxdi_svd_plugin.recover.settings import Settings
from nxdi_svd_plugin.recover.train import State, Trainer, validation_perplexity
from nxdi_svd_plugin.report.card import CARD, model_card, read_card

LOG = logging.getLogger(__name__)
HELD_OUT = 10  # without a validation file, one window in so many is held out, from the end of the data
SHARD_SIZE = 5 * 10**9
OF_THE_INPUT = ("evaluation", "tasks", "layer_losses")  # measured before recovery


def recover(
    model_dir: Path,
    data: Path,
    output: Path,
    settings: Settings,
    *,
    validation: Path | None = None,
    teacher_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Recover `model_dir` on `data` into `output` and return the `recovery` object of its report.json.

    Args:
        data, validation: text files (recovery_data); without `validation` the end of the data is held out.
        teacher_dir: the dense model to distil from; None trains on the next token.
    Raises:
        CheckpointError: not a compressed directory, a teacher of another vocabulary, a refused output.
        CalibrationError: unusable text. RecipeError: a window longer than the model takes. MissingExtraError: peft is
            not installed (method "lora").
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(model_dir)
    train, held = texts(data, validation, tokenizer, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_pretrained(model_dir, torch.float32)
    check_window(model, settings.window)
    model.to(device)
    teacher = None if teacher_dir is None else load_teacher(teacher_dir, model).to(device)
    reader = Reader(model_dir)
    factors = lora.factor_parameters(model)
    before = {name: p.detach().clone() for name, p in factors.items()}
    trained = trainable(model, factors, settings)
    prepare_output(output, model_dir, resume=resume, overwrite=overwrite)
    identity = identity_of(reader, settings, train, held, teacher_dir)
    trainer = Trainer(model, trained, settings, teacher, output / UNFINISHED / "recovery.pt", identity)
    state = trainer.run(train.tokens, held.tokens)
    if settings.method == "lora":
        lora.merge(model)
    perplexity = choose(model, factors, before, reader, held.tokens, state)
    record = {
        "settings": dataclasses.asdict(settings),
        "loss": "next token" if teacher is None else "distillation",
        "teacher": None if teacher_dir is None else teacher_dir.resolve().name,
        "data": describe(data, train),
        "validation": describe(validation or data, held),
        "perplexity": perplexity,
        "kept_input": perplexity["output"] == perplexity["input"],
        "best_step": state.best_step,
        "history": state.history,
        "seconds": time.monotonic() - began,
        "device": device.type,
    }
    write(model_dir, output, reader, factors, record)
    return record


def texts(data: Path, validation: Path | None, tokenizer: Any, settings: Settings) -> tuple[Windows, Windows]:
    """Training and validation windows; without a validation file the last tenth of the data, at least one window."""
    need = settings.steps * settings.batch + settings.validation_windows
    train = load_windows(data, tokenizer, settings.window, need)
    if validation is not None:
        held = load_windows(validation, tokenizer, settings.window, settings.validation_windows)
        if held.sha256 == train.sha256:
            raise CalibrationError(f"{validation} is the training text itself; give another, or leave --validation out")
        return train, held
    count = min(settings.validation_windows, max(1, len(train.tokens) // HELD_OUT))
    if len(train.tokens) < 2:
        raise CalibrationError(
            f"{data} fills one window of {settings.window} tokens: none is left for validation. Give more text, a "
            "smaller --window, or --validation"
        )
    cut = len(train.tokens) - count
    parts = train.tokens[:cut], train.tokens[cut:]
    return dataclasses.replace(train, tokens=parts[0]), dataclasses.replace(train, tokens=parts[1])


def load_teacher(directory: Path, student: Any) -> Any:
    """The frozen dense model.

    Raises:
        CheckpointError: its vocabulary has another size.
    """
    teacher = load_model(directory, torch.float32)
    sizes = teacher.config.vocab_size, student.config.vocab_size
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"teacher {directory} has {sizes[0]} tokens, the model has {sizes[1]}; give the model it was made from"
        )
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def trainable(model: Any, factors: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The parameters that the method trains; all others are frozen."""
    if settings.method == "lora":
        generator = torch.Generator().manual_seed(settings.seed)
        return lora.attach(model, settings.lora_rank, settings.lora_alpha, generator)
    model.requires_grad_(False)
    for parameter in factors.values():
        parameter.requires_grad_(True)
    return dict(factors)


def identity_of(
    reader: Reader, settings: Settings, train: Windows, held: Windows, teacher: Path | None
) -> dict[str, Any]:
    """What a resumed run must have in common with the interrupted one."""
    return {
        "model": reader.fingerprint(),
        "settings": dataclasses.asdict(settings),
        "data": train.sha256,
        "validation": held.sha256,
        "teacher": None if teacher is None else Reader(teacher).fingerprint(),
    }


@torch.no_grad()
def choose(
    model: Any,
    factors: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
    reader: Reader,
    validation: torch.Tensor,
    state: State,
) -> dict[str, float]:
    """Leave the better of the trained and the input's factors in the model, as stored; both perplexities.

    As stored: rounded to the stored dtype, C within the limit of its growth.
    """
    for name, parameter in factors.items():
        if name.endswith(".c"):
            parameter.clamp_(-GROWTH_LIMIT, GROWTH_LIMIT)
        parameter.copy_(parameter.to(reader.tensors[name].dtype))
    trained = validation_perplexity(model, validation)
    candidate = {name: p.detach().clone() for name, p in factors.items()}
    restore(factors, before)
    original = validation_perplexity(model, validation)
    better = trained < original
    if better:
        restore(factors, candidate)
        LOG.info("validation perplexity %.3f, was %.3f (best step %d)", trained, original, state.best_step)
    else:
        LOG.warning(
            "recovery did not help: validation perplexity %.3f, the input has %.3f; the output keeps the input. "
            "Try more or other text, or a smaller learning rate",
            trained,
            original,
        )
    return {"input": original, "trained": trained, "output": trained if better else original}


def restore(factors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    for name, parameter in factors.items():
        parameter.copy_(values[name])


def describe(path: Path, windows: Windows) -> dict[str, Any]:
    """Name, hash and size of a text."""
    count, length = windows.tokens.shape
    return {
        "text": path.name,
        "sha256": windows.sha256,
        "windows": count,
        "length": length,
        "documents": windows.documents,
        "empty": windows.empty,
    }


def write(
    model_dir: Path, output: Path, reader: Reader, factors: Mapping[str, torch.Tensor], record: dict[str, Any]
) -> None:
    """The input's directory with other factors; config.json and report.json say what was done."""
    entries = {name: (info.dtype, info.shape) for name, info in reader.tensors.items()}
    writer = Writer(output, entries, SHARD_SIZE)
    for name, (dtype, _) in entries.items():
        writer.write(name, factors[name].to(dtype) if name in factors else reader.get(name))
    writer.sync(entries)
    config, report = read_json(model_dir / CONFIG), read_report(model_dir)
    config["svd_config"] = {**dict(config["svd_config"]), "recovery": summary(record)}
    report = {key: value for key, value in report.items() if key not in OF_THE_INPUT} | {"recovery": record}
    if not record["kept_input"]:
        report["matrices"] = [remeasured(matrix, factors) for matrix in report.get("matrices", [])]
    report["files"] = {shard.name: file_sha256(output / UNFINISHED / shard.name) for shard in writer.shards}
    order = [ORDER] if (model_dir / ORDER).is_file() else []
    carried = {name: (model_dir / name).read_bytes() for name in (*carried_files(model_dir), *order)}
    if (model_dir / CARD).is_file():
        carried[CARD] = model_card(report, config, read_card(model_dir)).encode()
    carried[REPORT] = (json.dumps(report, indent=2) + "\n").encode()
    writer.finish(carried, config)


def remeasured(matrix: Mapping[str, Any], factors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The record of one projection with the growth of the new C, and without what was measured on the old one."""
    found = {key: value for key, value in matrix.items() if key not in ("bf16_error", "limited")}
    name = f"{projection_prefix(matrix['layer'], matrix['projection'])}c"
    return found | ({"growth": float(factors[name].abs().max())} if name in factors else {})


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The `recovery` object of svd_config: the record without history and machine."""
    return {key: record[key] for key in ("settings", "loss", "teacher", "data", "perplexity", "kept_input")}


def read_report(model_dir: Path) -> dict[str, Any]:
    """The input's report.json, or an empty one."""
    return read_json(model_dir / REPORT) if (model_dir / REPORT).is_file() else {}
