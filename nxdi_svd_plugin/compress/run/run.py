"""The loop: every step of the list that is left, each checked before and recorded after; killed at any moment, it goes
on at the step it was in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nxdi_svd_plugin.allocator import keep_freed_blocks
from nxdi_svd_plugin.checkpoint.lock import OutputLock
from nxdi_svd_plugin.checkpoint.names import CONFIG, REPORT, UNFINISHED
from nxdi_svd_plugin.checkpoint.working import WorkingFiles
from nxdi_svd_plugin.checkpoint.writer import check_output, prepare_output, remove_unfinished
from nxdi_svd_plugin.compress.calibrate import states, trials
from nxdi_svd_plugin.compress.run import calibration, factoring, manifest, refitting, scaling, sources
from nxdi_svd_plugin.compress.run.finish import completed, finish
from nxdi_svd_plugin.compress.run.job import Job, check_space, identity, prepare
from nxdi_svd_plugin.compress.run.progress import Progress
from nxdi_svd_plugin.compress.run.session import Session
from nxdi_svd_plugin.compress.run.steps import Step, schedule
from nxdi_svd_plugin.compress.run.world import World, join, leave, pick_device
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.recipe import Recipe, preset
from nxdi_svd_plugin.report.record import Report

WORK: dict[str, Callable[[Session, Step], str]] = {
    "embed": lambda run, step: calibration.embed(run),
    "forward": lambda run, step: calibration.forward(run, *step.layers),
    "head": lambda run, step: calibration.head(run),
    "backward": lambda run, step: calibration.backward(run, *step.layers),
    "spectra": lambda run, step: factoring.spectra(run, step.layers),
    "scale-embed": lambda run, step: scaling.embed(run),
    "scale-layer": lambda run, step: scaling.one_layer(run, *step.layers),
    "scale-head": lambda run, step: scaling.head(run),
    "ranks": lambda run, step: factoring.ranks(run),
    "copy": lambda run, step: factoring.copy(run),
    "factor": lambda run, step: factoring.factor(run, step.layers),
}
"""What each kind of step does; it returns a note for the log."""


def compress(
    model_dir: str | Path,
    output_dir: str | Path,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Report:
    """Factor the MLP weights of a dense Llama or Qwen3 and write a compressed Hugging Face directory (paper section
    4.1).

    Args:
        model_dir: the dense model; only read.
        output_dir: the compressed model; `config.json` appears last.
        recipe: what to factor and how far; None is the default recipe.
        resume: continue an unfinished output, or begin one; its tensors end byte-identical to an uninterrupted run.
        overwrite: replace what the output holds.
        device: "auto", "cpu" or a torch device.
        progress: show a bar, or plain lines without a terminal.
    Raises:
        SvdError: anything wrong with source, recipe, text or output, before long work; a full disk at any time.
    """
    keep_freed_blocks()
    world, output = join(), Path(output_dir).expanduser()
    job, on = prepare(Path(model_dir).expanduser(), recipe or preset("default")), pick_device(device)
    with alone(world, job, output, resume=resume, overwrite=overwrite):
        report = world.on_first(lambda: completed(job, output)) if resume else None
        if report is None:
            state = world.on_first(lambda: begin(job, output, world, on, resume=resume, overwrite=overwrite))
            report = all_steps(job, output, world, on, state, progress)
    leave(world)
    return report


def check(model_dir: str | Path, output_dir: str | Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Every check that `compress` makes before the first step, without writing anything.

    Raises:
        SvdError: as `compress`.
    """
    job = prepare(Path(model_dir), recipe)
    OutputLock(Path(output_dir)).check()
    check_output(Path(output_dir), job.config.directory, resume=resume, overwrite=overwrite)
    check_space(job, Path(output_dir), 1)


@contextmanager
def alone(world: World, job: Job, output: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the output's lock on process 0, after the checks that write nothing."""
    lock = OutputLock(output)

    def enter() -> None:
        lock.check()
        if not (resume and (output / CONFIG).is_file() and (output / REPORT).is_file()):
            check_output(output, job.config.directory, resume=resume, overwrite=overwrite)
        lock.acquire()

    world.on_first(enter)
    try:
        yield
    finally:
        lock.release()


def begin(
    job: Job, output: Path, world: World, device: torch.device, *, resume: bool, overwrite: bool
) -> manifest.Manifest:
    """The manifest of the run that is resumed, or of a new one in an empty output."""
    check_output(output, job.config.directory, resume=resume, overwrite=overwrite)
    saved = manifest.load(output / UNFINISHED) if resume else None
    if saved:
        torch.set_num_threads(saved.identity.get("threads", torch.get_num_threads()))
        manifest.check_same(saved.identity, identity(job, world.size, device))
        return saved
    check_space(job, output, world.size)
    state = manifest.Manifest(identity(job, world.size, device))
    prepare_output(output, job.config.directory, resume=resume, overwrite=overwrite)
    state.save(output / UNFINISHED)
    return state


def all_steps(
    job: Job, output: Path, world: World, device: torch.device, state: manifest.Manifest, show: bool
) -> Report:
    """Every step that is left, then the complete directory."""
    steps = schedule(job.recipe, job.config.layers, world.size)
    left = steps[len(state.steps) :]
    files = WorkingFiles(output / UNFINISHED, world.rank, state.files)
    progress = Progress([step.kind for step in left], len(job.samples), show and world.first)
    run = Session(job, output, world, device, state, files, progress)
    for step in left:
        wall, cpu = time.monotonic(), time.process_time()
        check_files(run, reads(run, step))
        note = WORK[step.kind](run, step)
        state.wall_seconds += time.monotonic() - wall
        state.cpu_seconds += time.process_time() - cpu
        record(run, step)
        run.progress.done(step.name, note)
    run.progress.close()
    check_files(run, factoring.orders(run) if world.first else [])
    report = world.on_first(lambda: complete(run))
    if run.folder.exists():  # a process with its own disk
        remove_unfinished(output)
    return report


def complete(run: Session) -> Report:
    """The directory of a run whose steps are all done."""
    writer = run.writer()
    factoring.write_orders(run)
    return finish(run.job, writer, run.state, run.device)


def reads(run: Session, step: Step) -> list[str]:
    """The working files of this process that a step reads."""
    if step.kind == "forward":
        return [states.hidden(*step.layers)]
    if step.kind == "head":
        return [states.hidden(run.job.config.layers)]
    if step.kind == "backward":
        return [states.hidden(*step.layers), states.gradient(step.layers[0] + 1)]
    if step.kind == "spectra":
        return [name for i in run.own(step.layers) for name in sources.sums_files(run, i)]
    if step.kind == "scale-layer":
        own = step.layers if step.layers[0] % run.world.size == run.world.rank else ()
        return [trials.copies(*step.layers), *(name for i in own for name in sources.factor_files(run, i))]
    if step.kind == "scale-head":
        return [trials.copies(run.job.config.layers)]
    if step.kind == "ranks":
        every = range(run.world.rank, run.job.config.layers, run.world.size)
        return [name for i in every for name in sources.loss_files(run, i)]
    if step.kind == "factor":
        return [*sources_of_factors(run, step), *(refitting.reads(step.layers) if run.job.recipe.refits else [])]
    return []


def sources_of_factors(run: Session, step: Step) -> list[str]:
    """Those of the layer that this process factors in a step."""
    return [name for i in run.own(step.layers) for name in sources.factor_files(run, i)]


def drops(run: Session, step: Step) -> list[str]:
    """Those of them that no later step reads: all, but for the inputs of a layer that a gradient will come back to, and
    what the factors need once the width of a layer is known, which the measuring of scales reads too. Where there is a
    refit, it is the last to read inputs."""
    if step.kind == "scale-layer":
        return [trials.copies(*step.layers)]
    comes_back = step.kind == "forward" and run.job.recipe.differentiates
    waits = step.kind in ("spectra", "ranks") and run.job.recipe.drops
    if waits:
        again = {name for i in range(run.job.config.layers) for name in sources.factor_files(run, i)}
        return [name for name in reads(run, step) if name not in again]
    if not run.job.recipe.refits:
        return [] if comes_back else reads(run, step)
    if step.kind == "factor":
        return [*sources_of_factors(run, step), *refitting.done_with(step.layers)]
    inputs = {states.hidden(i) for i in range(run.job.config.layers + 1)}
    return [name for name in reads(run, step) if name not in inputs]


def check_files(run: Session, names: list[str]) -> None:
    """Refuse working files that are not what the step that wrote them recorded, on any process.

    Raises:
        CheckpointError: names the first one.
    """
    found = [fault for part in run.world.all(run.files.faults(names)) for fault in part]
    if found:
        raise CheckpointError(f"{found[0]}: the working files are damaged; start again with --overwrite")


def record(run: Session, step: Step) -> None:
    """Put a finished step and what it wrote into the manifest, then delete what nothing reads any more."""
    gone = drops(run, step)
    for written, dropped in run.world.all((run.files.take_written(), [run.files.path(name).name for name in gone])):
        run.state.files |= written
        for name in dropped:
            del run.state.files[name]
    run.state.steps.append(step.name)
    run.world.on_first(lambda: run.state.save(run.folder))
    for name in gone:
        run.files.drop(name)
