"""Recovery: train the factors of a compressed directory on text and write them as another compressed directory.

The result is never worse than the input on the validation text: both are measured with the parameters as they are
stored, and if training did not help, the output holds the input's tensors.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.lock import OutputLock
from nxdi_svd_plugin.checkpoint.names import LAYERS, UNFINISHED, in_a_layer, model_name
from nxdi_svd_plugin.checkpoint.partner import check_partner
from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.writer import check_output, prepare_output
from nxdi_svd_plugin.errors import CalibrationError, CheckpointError
from nxdi_svd_plugin.evaluate.perplexity import check_window
from nxdi_svd_plugin.modeling.finite import check_ids
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recover import lora
from nxdi_svd_plugin.recover.choose import as_stored, choose, copies, tell
from nxdi_svd_plugin.recover.data import Windows, load_windows
from nxdi_svd_plugin.recover.settings import Settings
from nxdi_svd_plugin.recover.train import Trainer
from nxdi_svd_plugin.recover.write import write
from nxdi_svd_plugin.report.measured import Recovery, Step, TrainingText
from nxdi_svd_plugin.report.record import Report

HELD_OUT = 10  # without a validation file, one window in so many is held out, from the end of the data


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
) -> Recovery:
    """Recover `model_dir` on `data` into `output` and return what its report.json says of it.

    Args:
        data, validation: text files (recover/data.py); without `validation` the end of the data is held out.
        teacher_dir: the dense model to distil from; None trains on the next token.
    Raises:
        CheckpointError: no compressed directory with its report.json, a tokenizer or a teacher of another model, an
            output that is refused.
        CalibrationError: unusable text. RecipeError: a window longer than the model takes. MissingExtraError: peft is
            not installed (method "lora").
    """
    began = time.monotonic()
    train, held = texts(data, validation, load_tokenizer(model_dir), settings)
    carried(model_dir)  # what the last step copies must be readable now
    model = load_student(model_dir, settings)
    for windows in (train, held):
        check_ids(model_dir, model.get_input_embeddings().num_embeddings, windows.tokens)
    teacher = None if teacher_dir is None else load_teacher(teacher_dir, model).to(model.device)
    if teacher_dir is not None:
        check_partner(model_dir, teacher_dir)
    reader, report = Reader(model_dir), Report.read(model_dir)
    factors = lora.factor_parameters(model) | (layer_matrices(model) if settings.method == LAYERS else {})
    before = copies(factors)
    trained = trainable(model, factors, settings)
    lock = OutputLock(output)
    lock.check()
    check_output(output, model_dir, resume=resume, overwrite=overwrite)
    with lock:
        prepare_output(output, model_dir, resume=resume, overwrite=overwrite)
        identity = identity_of(reader, settings, train, held, teacher_dir)
        state = Trainer(model, trained, settings, teacher, output / UNFINISHED / "recovery.pt", identity).run(
            train.tokens, held.tokens
        )
        if settings.method == "lora":
            lora.merge(model)
        as_stored(factors, reader, report.layers)
        change = choose(model, factors, before, held.tokens)
        tell(change, state.best_step)
        recovery = Recovery(
            settings=dataclasses.asdict(settings),
            loss="next token" if teacher is None else "distillation",
            teacher=None if teacher_dir is None else model_name(teacher_dir),
            data=describe(data, train),
            validation=describe(validation or data, held),
            perplexity=change,
            kept_input=change.output == change.input,
            best_step=state.best_step,
            history=tuple(Step(**row) for row in state.history),
            seconds=time.monotonic() - began,
            device=model.device.type,
        )
        write(output, reader, factors, report, recovery)
        return recovery


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


def load_student(directory: Path, settings: Settings) -> Any:
    """The compressed model in float32, on the GPU where there is one.

    Raises:
        CheckpointError: as `load_pretrained`. RecipeError: a window longer than it takes.
    """
    model: Any = load_pretrained(directory, torch.float32)
    check_window(model, settings.window)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


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


def layer_matrices(model: Any) -> dict[str, Any]:
    """Name and parameter of every matrix of the layers that is stored as the dense model has it."""
    return {name: parameter for name, parameter in model.named_parameters() if in_a_layer(name)}


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


def describe(path: Path, windows: Windows) -> TrainingText:
    """Name, hash and size of a text."""
    count, length = windows.tokens.shape
    return TrainingText(path.name, windows.sha256, count, length, windows.documents, windows.empty)
