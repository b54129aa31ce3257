"""The layer loop of every recipe but the paper's: forward, backward, allocation, then factors; each step is resumable.

1. forward: hidden states of every layer boundary go to disk (objective input: the statistics are summed here).
2. head, backward: the loss gradient flows from layer to layer over the disk, and the statistics are summed.
3. ranks: from the spectra of all layers (allocation global), or Eq. 5.
4. factors: layer by layer, from the statistics on disk.

At any time one layer (or the head) is in memory. Disk: tokens x hidden x 4 bytes x (layers + 3) and, per layer, up to
five float64 matrices of hidden x hidden; compress/plan/two_pass_cost.py says how much.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from nxdi_svd_plugin.checkpoint.atomic import disk_errors, write_bytes
from nxdi_svd_plugin.checkpoint.layout import tensor_bytes
from nxdi_svd_plugin.checkpoint.names import ORDER, projection_prefix
from nxdi_svd_plugin.checkpoint.writer import Writer, remove_unfinished
from nxdi_svd_plugin.compress.calibrate import gradient as backward
from nxdi_svd_plugin.compress.calibrate import layer as calibrate
from nxdi_svd_plugin.compress.factor.layer import LayerFactors, factor_layer, layer_spectrum
from nxdi_svd_plugin.compress.factor.rounding import stored_errors, warn
from nxdi_svd_plugin.compress.plan.budget import global_ranks
from nxdi_svd_plugin.compress.plan.two_pass_cost import disk_needs, statistics_shapes
from nxdi_svd_plugin.compress.run.finish import finish
from nxdi_svd_plugin.compress.run.job import Job, entries, factor_dtype
from nxdi_svd_plugin.compress.run.progress import Progress
from nxdi_svd_plugin.compress.run.run import Run
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.factorize.spectrum import Spectrum
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.stored.layers import PROJECTIONS, Layers, Projection, tensor_shapes


def check_disk(job: Job, output: Path) -> None:
    """Refuse an output disk that is too small for a two-pass run: statistics, hidden states, result.

    Raises:
        CheckpointError: says what is needed and what is free.
    """
    states, statistics = disk_needs(job.config, job.recipe, job.samples.numel())
    weights = sum(tensor_bytes(*entry) for entry in entries(job).values())
    needs = statistics + max(states, weights)  # the states are gone when the weights come
    existing = output
    while not existing.exists():
        existing = existing.absolute().parent
    free = shutil.disk_usage(existing).free
    if needs > free:
        raise CheckpointError(
            f"{output} needs {needs / 1e9:.2f} GB (statistics {statistics / 1e9:.2f} and, one after the other, "
            f"hidden states {states / 1e9:.2f} and the result {weights / 1e9:.2f}), {free / 1e9:.2f} GB are free; free "
            "some space, use fewer calibration tokens or `recipe: paper`"
        )


class TwoPassRun(Run):
    """One compression in one process of a world, with statistics of all layers before the first factor."""

    @property
    def differentiates(self) -> bool:
        """Whether the objective needs loss gradients."""
        return self.job.recipe.objective != "input"

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Make or reopen the output; the shards are made when the ranks are known."""
        if not resume:
            check_disk(self.job, self.output)
        self.state = self.world.on_first(lambda: self._open(resume, overwrite))
        shape = (self.job.samples.shape[1], self.config.hidden)
        self.gradients = backward.Gradients(self.folder, self.world.rank, shape)
        self.tokens = self.job.samples.numel()

    def all_layers(self, show: bool) -> Report:
        """Every step that is left, then the complete directory."""
        steps, count = self._steps(), self.config.layers
        if self.state.steps == 0:
            self.hidden.write(0, self._embedded())
        left = len(steps) - self.state.steps + count - self.state.layers
        self.progress = Progress(left, len(self.mine), show and self.world.first)
        for name, work in steps[self.state.steps :]:
            self._timed(partial(self._step, name, work))
            self.state.steps += 1
            self.world.on_first(lambda: self.state.save(self.folder))
        self._open_writer()
        for layer in range(self.state.layers, count):
            self._timed(partial(self.factors, layer))
            self.state.layers = layer + 1
            self.world.on_first(lambda: self.state.save(self.folder))
            self.progress.layer(f"factors {layer}", note(self.state.records[-len(PROJECTIONS) :]))
        self.progress.close()
        report = self.world.on_first(self._finish)
        if self.folder.exists():  # a process with its own disk
            remove_unfinished(self.output)
        return report

    def _steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Everything before the ranks, in order; each step leaves its result on disk."""
        layers = range(self.config.layers)
        steps: list[tuple[str, Callable[[], str]]] = [(f"forward {i}", partial(self.forward, i)) for i in layers]
        if self.differentiates:
            steps.append(("head", self.head))
            steps += [(f"backward {i}", partial(self.backward, i)) for i in reversed(layers)]
        return steps

    def _step(self, name: str, work: Callable[[], str]) -> None:
        self.progress.layer(name, work())

    def _timed(self, work: Callable[[], None]) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        work()
        self.state.wall_seconds += time.monotonic() - wall
        self.state.cpu_seconds += time.process_time() - cpu

    def forward(self, layer: int) -> str:
        """Run the samples through the layer and store its outputs; sum the statistics if no gradient is needed."""
        model = calibrate.load_layer(self.reader, self.config, layer, self.device)

        def outputs() -> Iterator[torch.Tensor]:
            for sample in self.hidden.read(layer):
                yield calibrate.run_sample(model, sample.to(self.device))
                self.progress.step()

        if self.differentiates:
            self.hidden.write(layer + 1, outputs())
            return "hidden states"
        with calibrate.Collector(model, self.config.hidden, self.device) as collector:
            self.hidden.write(layer + 1, outputs())
        self._save_statistics(layer, {"inputs": collector.statistics.inputs, "outputs": collector.statistics.outputs})
        self.hidden.discard(layer - 1)
        return "statistics"

    def head(self) -> str:
        """The loss gradient at the last layer's output."""
        head = backward.Head(self.reader, self.config, self.device)
        numbers = range(self.world.rank, len(self.job.samples), self.world.size)

        def gradients() -> Iterator[torch.Tensor]:
            for number, sample in zip(numbers, self.hidden.read(self.config.layers), strict=True):
                yield head.gradient(sample.to(self.device), self.job.recipe.calibration.seed + number)
                self.progress.step()

        self.gradients.write(self.config.layers, gradients())
        return "loss gradient"

    def backward(self, layer: int) -> str:
        """The loss gradient at the layer's input from that at its output, and the statistics of its MLP."""
        model = calibrate.load_layer(self.reader, self.config, layer, self.device)
        objective = self.job.recipe.objective
        shapes = statistics_shapes(self.config, objective)
        collector = backward.TwoSidedCollector(model, objective == "two_sided_diagonal", shapes, self.device)

        def gradients() -> Iterator[torch.Tensor]:
            for sample, gradient in zip(self.hidden.read(layer), self.gradients.read(layer + 1), strict=True):
                yield backward.run_backward(model, sample.to(self.device), gradient.to(self.device))
                self.progress.step()

        self.gradients.write(layer, gradients())
        self._save_statistics(layer, collector.sums)
        self.gradients.discard(layer + 2)
        self.hidden.discard(layer + 2)
        return "statistics"

    def _save_statistics(self, layer: int, sums: dict[str, torch.Tensor]) -> None:
        """Sum over all processes and store where they will be needed: on process 0 and on the layer's owner."""
        total = {name: self.world.total(sums[name]).cpu() for name in sums}
        if self.world.rank in (0, self.owner(layer)):
            write_bytes(self._statistics(layer), save(total))

    def _statistics(self, layer: int) -> Path:
        return self.folder / f"statistics-{layer:05d}-{self.world.rank}.safetensors"

    def owner(self, layer: int) -> int:
        """The process that factors a layer."""
        return layer % self.world.size

    def spectrum(self, layer: int, name: str, rank: int = 0) -> Spectrum:
        """The objective's spectrum of one projection, from the statistics on disk."""
        sums = {key: tensor.to(self.device) for key, tensor in load_file(self._statistics(layer)).items()}
        weight, recipe = self._weight(layer, name), self.job.recipe
        return layer_spectrum(name, weight, sums, self.tokens, recipe.objective, recipe.damping, rank)

    def _weight(self, layer: int, name: str) -> torch.Tensor:
        return self.reader.get(projection_prefix(layer, name) + "weight").to(self.device)

    def ranks(self) -> Layers:
        """Form and rank of every projection; the pivots come with the factors."""
        if self.job.recipe.allocation == "uniform":
            return self.job.layers
        energies = {
            (i, name): self.spectrum(i, name).energy.cpu().numpy()
            for i in range(self.config.layers)
            for name in PROJECTIONS
        }
        return global_ranks(self.config, self.job.recipe, energies)

    def _open_writer(self) -> None:
        """Decide the ranks, make the shards, and copy what stays as it is."""
        self.job = dataclasses.replace(self.job, layers=self.world.on_first(self.ranks))
        self.writer = Writer(self.output, entries(self.job), self.job.recipe.shard_size) if self.world.first else None
        if self.writer and not self.state.layers:
            kept = [n for n in self.writer.entries if n in self.reader.tensors and n not in self._reordered()]
            for name in kept:
                self.writer.write(name, self.reader.get(name))
            self.writer.sync(kept)

    def _reordered(self) -> set[str]:
        """Dense projections that are stored in the order of their layer's interpolative ones."""
        return {
            projection_prefix(i, name) + "weight"
            for i, layer in self.job.layers.items()
            if any(p.form == "interpolative" for p in layer.values())
            for name, p in layer.items()
            if p.form == "dense"
        }

    def factors(self, layer: int) -> None:
        """Factor one layer on its owner and write it on process 0."""
        mine = self._factor(layer) if self.owner(layer) == self.world.rank else None
        written = []
        for name, (dtype, shape) in self._stored(layer).items():
            tensor = mine.tensors[name].to(dtype).cpu() if mine else None
            received = self.world.to_first(tensor, self.owner(layer), torch.empty(shape, dtype=dtype, device="meta"))
            if self.writer and received is not None:
                full = f"model.layers.{layer}.mlp.{name}"
                self.writer.write(full, received)
                written.append(full)
        if self.writer:
            self.writer.sync(written)
        found = next(f for f in self.world.all(mine and (mine.records, mine.order, mine.projections)) if f)
        records, order, projections = found
        if order is not None:
            self.world.on_first(lambda: self._save_order(layer, order))
        for name, projection in projections.items():
            self.state.records.append(
                {"layer": layer, "projection": name, **projection.to_dict(), **records.get(name, {})}
            )

    def _factor(self, layer: int) -> LayerFactors:
        planned, began = self.job.layers[layer], time.monotonic()
        spectra = {name: self.spectrum(layer, name, p.rank) for name, p in planned.items() if p.form != "dense"}
        made = factor_layer(partial(self._weight, layer), spectra, planned, self.job.recipe.block)
        if spectra:
            inputs = load_file(self._statistics(layer))["inputs"].to(self.device) / self.tokens
            for name, errors in stored_errors(made, partial(self._weight, layer), inputs).items():
                made.records[name] |= errors
            warn(layer, made.records)
        for record in made.records.values():
            record["seconds"] = (time.monotonic() - began) / len(made.records)
        return made

    def _stored(self, layer: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of what a layer's factors store."""
        stored: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, projection in self.job.layers[layer].items():
            full = projection_prefix(layer, name) + "weight"
            if projection.form != "dense" or full in self._reordered():
                for suffix, shape in tensor_shapes(projection, *self.config.dims(name)).items():
                    stored[f"{name}.{suffix}"] = (factor_dtype(self.job, layer, name), shape)
        return stored

    def _save_order(self, layer: int, order: torch.Tensor) -> None:
        write_bytes(self.folder / f"order-{layer:05d}.bin", order.to(torch.int32).numpy().tobytes())

    def _finish(self) -> Report:
        """The pivots go from the records into the config, the orders of I into one file."""
        layers: Layers = {}
        for record in self.state.records:
            runs = tuple((start, stop) for start, stop in record.get("pivots", ()))
            found = Projection(record["form"], record.get("rank", 0), runs)
            layers.setdefault(record["layer"], {})[record["projection"]] = found
        job = dataclasses.replace(self.job, layers=layers)
        self._write_orders()
        return finish(job, self.output, self._writer(), self.state, self.device)

    def _write_orders(self) -> None:
        found = {p: int(p.stem.split("-")[1]) for p in self.folder.glob("order-*.bin")}
        if not found:
            return
        orders = np.tile(np.arange(self.config.intermediate, dtype=np.int32), (self.config.layers, 1))
        for path, layer in found.items():
            orders[layer] = np.frombuffer(path.read_bytes(), dtype=np.int32)
        with disk_errors(self.output / ORDER), open(self.output / ORDER, "wb") as file:
            np.save(file, orders, allow_pickle=False)


def note(records: list[dict[str, Any]]) -> str:
    """Ranks of one layer, for the log."""
    return ", ".join(
        f"{r['projection'].removesuffix('_proj')} {r['rank'] if r['form'] != 'dense' else 'dense'}" for r in records
    )
