"""A report.json by hand, with every part that it may have."""

import hashlib
import json

from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.measured import (
    Change,
    Evaluation,
    LayerLosses,
    Recovery,
    Row,
    Score,
    Step,
    Tasks,
    TextName,
    TrainingText,
)
from nxdi_svd_plugin.report.record import Calibration, Cost, Parameters, Ratio, Report, Source
from nxdi_svd_plugin.report.scaling import Scaling, Trial
from nxdi_svd_plugin.stored.layers import parse_layers
from nxdi_svd_plugin.stored.projection import DENSE, PROJECTIONS, LowRank

MEASURED = {
    "relative_error": 0.125,
    "discarded": 1.5,
    "energy": 40.0,
    "relative_ridge": 0.0,
    "predicted_loss": 0.002,
    "bf16_error": 0.011,
    "seconds": 0.25,
}


def matrices(layers=3, width=90, rank=20, **measured):
    """Pairs of one rank with the same numbers everywhere."""
    return tuple(MatrixRecord(i, name, width, LowRank(rank), **measured) for i in range(layers) for name in PROJECTIONS)


def mixed(width=1536):
    """Two layers that have every form."""
    runs = ((0, 128), (256, 384))
    forms = [LowRank(256, runs), LowRank(384), DENSE, LowRank(256), LowRank(128, ((0, 128),)), LowRank(384)]
    return tuple(
        MatrixRecord(
            i // 3,
            PROJECTIONS[i % 3],
            width,
            form,
            **({} if form == DENSE else MEASURED),
            **({"growth": 1.5, "limited": 0.0} if isinstance(form, LowRank) and form.pivots else {}),
        )
        for i, form in enumerate(forms)
    )


def a_report(**parts):
    """A report of three layers of pairs, with the given parts in place of its own."""
    whole = {
        "source": Source("tiny", "llama", "f" * 64),
        "ratio": Ratio(0.1, "mlp", 0.1234, 0.0567),
        "parameters": Parameters(10**6, 9 * 10**5, 2 * 10**6, 19 * 10**5),
        "matrices": matrices(),
        "calibration": Calibration("wiki.txt", "ab" * 32, 64, 512, 32768, 3),
        "recipe": {"ratio": 0.1},
        "versions": {"nxdi_svd_plugin": "0.1.0", "torch": "2.9.0"},
        "cost": Cost(12.4, 20.5, 2**30, "x86_64, 2 cores", "cpu", 2, 1),
        "files": {"model.safetensors": "c" * 64},
    }
    return Report(**{**whole, **parts})


def write_report(directory, measured=None, **parts):
    """The report of a directory that was made by hand: its own MLPs with the same numbers, its own files."""
    config = json.loads((directory / "config.json").read_text())
    layers = parse_layers(config["svd_config"], config["num_hidden_layers"], config["intermediate_size"])
    records = tuple(
        MatrixRecord(i, name, mlp.width, form, **({} if form == DENSE else measured or MEASURED))
        for i, mlp in layers.items()
        for name, form in mlp.items()
    )
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.glob("*.safetensors")}
    report = a_report(**{"matrices": records, "files": files, **parts})
    report.write(directory)
    return report


EVALUATION = Evaluation(
    "some/where/svd",
    *(25.0, 3.2, 4092, 1024, 512, "float32", 7.5),
    text=TextName("held.txt", "b" * 64),
    base=Score("some/where/dense", 20.0, 3.0, 4092, 1024, 512, "float32", 6.5),
    relative=1.25,
)
TASKS = Tasks(
    rows=(
        Row("book", "perplexity", 10, 20.0, None, 25.0, None, 0.8),
        Row("piqa", "acc", 100, 0.6, 0.011, 0.54, 0.012, 0.9),
    ),
    settings={"limit": None, "fewshot": 0, "dtype": "auto", "batch": 1, "lm_eval": "0.4.9"},
)
LOSSES = LayerLosses((0.1, 0.2, 0.0), (0.11, 0.25, 0.0), 1.0, 2048, 512, TextName("held.txt", "b" * 64))
TRAINING = TrainingText("alpaca.jsonl", "d" * 64, 800, 512, 60, 1)
RECOVERY = Recovery(
    settings={"method": "lora", "steps": 200, "batch": 4, "window": 512, "seed": 5, "lora_alpha": 64.0},
    loss="distillation",
    teacher="smollm2",
    data=TRAINING,
    validation=TRAINING,
    perplexity=Change(30.5, 20.25, 20.25),
    kept_input=False,
    best_step=50,
    history=(Step(0, None, 30.5, 0.0), Step(75, 2.5, 20.25, 30.0)),
    seconds=61.0,
    device="cpu",
)
TRIALS = (Trial(0, "low_rank", 0.01, 0.013, 1.3, rank=384), Trial(0, "drop", 0.02, 0.05, 2.5, width=512))
SCALING = Scaling("mixed.txt", "e" * 64, 2, 128, 256, TRIALS)
EVERYTHING = {
    "scaling": SCALING,
    "evaluation": EVALUATION,
    "tasks": TASKS,
    "layer_losses": LOSSES,
    "recovery": RECOVERY,
}
