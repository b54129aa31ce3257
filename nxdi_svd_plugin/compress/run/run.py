"""The layer loop: collect statistics, factor, write; killed at any moment, it goes on at the layer it was in."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nxdi_svd_plugin.checkpoint.names import EMBEDDING, UNFINISHED, projection_prefix
from nxdi_svd_plugin.checkpoint.reader import file_sha256
from nxdi_svd_plugin.checkpoint.writer import Writer, check_output, prepare_output, remove_unfinished
from nxdi_svd_plugin.compress.calibrate import layer as calibrate
from nxdi_svd_plugin.compress.calibrate.states import HiddenStates
from nxdi_svd_plugin.compress.run import manifest
from nxdi_svd_plugin.compress.run.finish import completed, finish
from nxdi_svd_plugin.compress.run.job import Job, check_space, entries, factor_dtype, identity, prepare
from nxdi_svd_plugin.compress.run.progress import Progress
from nxdi_svd_plugin.compress.run.world import World, join, leave, pick_device
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.factorize import svd
from nxdi_svd_plugin.factorize.whitening import Whitening, whiten
from nxdi_svd_plugin.recipe import Recipe, preset
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.stored.layers import tensor_shapes

logger = logging.getLogger(__name__)


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
    from nxdi_svd_plugin.compress.plan.two_pass_cost import needed
    from nxdi_svd_plugin.compress.run.two_pass import TwoPassRun

    recipe = recipe or preset("default")
    kind = TwoPassRun if needed(recipe) else Run
    run = kind(Path(model_dir), Path(output_dir), recipe, join(), pick_device(device))
    if resume and (report := run.world.on_first(lambda: completed(run.job, run.output))) is not None:
        return report
    run.start(resume=resume, overwrite=overwrite)
    report = run.all_layers(progress)
    leave(run.world)
    return report


def check(model_dir: str | Path, output_dir: str | Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Every check that `compress` makes before the first layer, without writing anything.

    Raises:
        SvdError: as `compress`.
    """
    from nxdi_svd_plugin.compress.plan.two_pass_cost import needed
    from nxdi_svd_plugin.compress.run.two_pass import check_disk

    job = prepare(Path(model_dir), recipe)
    check_output(Path(output_dir), job.config.directory, resume=resume, overwrite=overwrite)
    check_space(job, Path(output_dir), 1)
    if needed(recipe):
        check_disk(job, Path(output_dir))
    job.reader.check_finite()


class Run:
    """One compression in one process of a world."""

    def __init__(self, model_dir: Path, output: Path, recipe: Recipe, world: World, device: torch.device) -> None:
        self.output, self.world, self.device = output, world, device
        self.folder = output / UNFINISHED
        self.job: Job = prepare(model_dir, recipe)
        self.config, self.reader = self.job.config, self.job.reader
        self.hidden = HiddenStates(self.folder, world.rank, (self.job.samples.shape[1], self.config.hidden))
        self.mine = self.job.samples[world.rank :: world.size]

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Make or reopen the output, and copy the tensors that stay as they are."""
        self.state = self.world.on_first(lambda: self._open(resume, overwrite))
        if self.state.layers:
            self._check_hidden()
        self.writer = Writer(self.output, entries(self.job), self.job.recipe.shard_size) if self.world.first else None
        if self.writer and not self.state.layers:
            kept = [name for name in self.writer.entries if name in self.reader.tensors]
            for name in kept:
                self.writer.write(name, self.reader.get(name))
            self.writer.sync(kept)

    def _open(self, resume: bool, overwrite: bool) -> manifest.Manifest:
        check_output(self.output, self.config.directory, resume=resume, overwrite=overwrite)
        saved = manifest.load(self.folder) if resume else None
        if saved:
            torch.set_num_threads(saved.identity.get("threads", torch.get_num_threads()))
        else:
            check_space(self.job, self.output, self.world.size)
        now = identity(self.job, self.world.size, self.device)
        if saved:
            manifest.check_same(saved.identity, now)
            return saved
        prepare_output(self.output, self.config.directory, resume=resume, overwrite=overwrite)
        state = manifest.Manifest(now)
        state.save(self.folder)
        return state

    def _check_hidden(self) -> None:
        if self.state.layers == self.config.layers:
            return
        path = self.hidden.path(self.state.layers)
        good = path.is_file() and file_sha256(path) == self.state.hidden[self.world.rank]
        if not all(self.world.all(good)):
            raise CheckpointError(f"the hidden states in {self.folder} are damaged; start again with --overwrite")

    def all_layers(self, show: bool) -> Report:
        """Do every layer that is left, then complete the directory."""
        if self.state.layers == 0:
            self.hidden.write(0, self._embedded())
        progress = Progress(self.config.layers - self.state.layers, len(self.mine) + 3, show and self.world.first)
        for layer in range(self.state.layers, self.config.layers):
            wall, cpu = time.monotonic(), time.process_time()
            statistics = self.collect(layer, progress)
            records = self.factor(layer, statistics, progress)
            self.state.records += records
            self.state.wall_seconds += time.monotonic() - wall
            self.state.cpu_seconds += time.process_time() - cpu
            self._layer_done(layer)
            progress.layer(layer, _note(records))
        progress.close()
        report = self.world.on_first(lambda: finish(self.job, self.output, self._writer(), self.state, self.device))
        if self.folder.exists():  # a process with its own disk
            remove_unfinished(self.output)
        return report

    def _embedded(self) -> Iterator[torch.Tensor]:
        for ids in self.mine:
            yield calibrate.embed(self.reader, EMBEDDING, ids)

    def collect(self, layer: int, progress: Progress) -> calibrate.Statistics:
        """Run this process's samples through the layer, store its outputs, and sum the statistics over all
        processes."""
        model = calibrate.load_layer(self.reader, self.config, layer, self.device)
        collector = calibrate.Collector(model, self.config.hidden, self.device)

        def outputs() -> Iterator[torch.Tensor]:
            for sample in self.hidden.read(layer):
                yield calibrate.run_sample(model, sample.to(self.device))
                progress.step()

        with collector:
            last = layer + 1 == self.config.layers
            digest = _exhaust(outputs()) if last else self.hidden.write(layer + 1, outputs())
        self.state.hidden = self.world.all(digest)
        found = collector.statistics
        return calibrate.Statistics(self.world.total(found.inputs), self.world.total(found.outputs))

    def factor(self, layer: int, statistics: calibrate.Statistics, progress: Progress) -> list[dict[str, Any]]:
        """Factor this process's share of the layer's matrices and write all of them on process 0."""
        calibrate.free_layers()
        whitening = None
        done: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}
        for index, name in enumerate(self.job.layers[layer]):
            if index % self.world.size == self.world.rank:
                if name != "down_proj" and whitening is None:
                    whitening = whiten(statistics.inputs)
                done[name] = self._factor_one(layer, name, statistics, whitening)
                progress.step()
        return self._gather(layer, done)

    def _factor_one(
        self, layer: int, name: str, statistics: calibrate.Statistics, whitening: Whitening | None
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of one projection on the CPU, and its record."""
        projection, began = self.job.layers[layer][name], time.monotonic()
        record: dict[str, Any] = {"layer": layer, "projection": name, **projection.to_dict()}
        if projection.form == "dense":
            return {}, record
        weight = self.reader.get(projection_prefix(layer, name) + "weight").to(self.device)
        if whitening is None or name == "down_proj":
            factors = svd.factor_by_output(weight, statistics.outputs, projection.rank)
        else:
            factors = svd.factor_by_input(weight, whitening, projection.rank)
        record |= {
            "relative_error": factors.relative_error,
            "discarded": factors.discarded,
            "energy": float(factors.spectrum.sum()),
            "relative_ridge": factors.relative_ridge,
            "seconds": time.monotonic() - began,
        }
        dtype = factor_dtype(self.job, layer, name)
        return {"u": factors.u.to(dtype).cpu(), "v": factors.v.to(dtype).cpu()}, record

    def _gather(
        self, layer: int, done: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Bring all factors to process 0 and write them; the records go everywhere."""
        written = []
        for index, (name, projection) in enumerate(self.job.layers[layer].items()):
            if projection.form == "dense":
                continue
            for suffix, shape in tensor_shapes(projection, *self.config.dims(name)).items():
                owner = index % self.world.size
                like = torch.empty(shape, dtype=factor_dtype(self.job, layer, name), device="meta")
                mine = done[name][0][suffix] if name in done else None
                tensor = self.world.to_first(mine, owner, like)
                if self.writer and tensor is not None:
                    self.writer.write(projection_prefix(layer, name) + suffix, tensor)
                    written.append(projection_prefix(layer, name) + suffix)
        if self.writer:
            self.writer.sync(written)
        records = {
            name: record for part in self.world.all({n: d[1] for n, d in done.items()}) for name, record in part.items()
        }
        return [records[name] for name in self.job.layers[layer]]

    def _layer_done(self, layer: int) -> None:
        self.state.layers = layer + 1
        self.world.on_first(lambda: self.state.save(self.folder))
        self.hidden.discard(layer)

    def _writer(self) -> Writer:
        if self.writer is None:
            raise CheckpointError("only process 0 writes the output")
        return self.writer


def _note(records: list[dict[str, Any]]) -> str:
    errors = [
        f"{r['projection'].removesuffix('_proj')} {100 * r['relative_error']:.1f} %"
        for r in records
        if r["form"] != "dense"
    ]
    return "output error " + ", ".join(errors) if errors else "dense"


def _exhaust(samples: Iterator[torch.Tensor]) -> str:
    """Run the samples through the last layer, whose outputs nothing reads."""
    for _ in samples:
        pass
    return ""
