"""What every step of a compression works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from nxdi_svd_plugin.checkpoint.names import UNFINISHED
from nxdi_svd_plugin.checkpoint.working import WorkingFiles
from nxdi_svd_plugin.checkpoint.writer import Writer
from nxdi_svd_plugin.compress.run.job import Job, entries
from nxdi_svd_plugin.compress.run.manifest import Manifest
from nxdi_svd_plugin.compress.run.progress import Progress
from nxdi_svd_plugin.compress.run.world import World
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import Layers, parse_layers


@dataclass
class Session:
    """One process of a compression.

    files: the working files of this process. state: the manifest. progress: of the steps that are left.
    """

    job: Job
    output: Path
    world: World
    device: torch.device
    state: Manifest
    files: WorkingFiles
    progress: Progress
    _writer: Writer | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """The working directory."""
        return self.output / UNFINISHED

    @property
    def shape(self) -> tuple[int, int]:
        """(length, hidden) of a sample."""
        return self.job.samples.shape[1], self.job.config.hidden

    @property
    def mine(self) -> range:
        """Numbers of this process's samples."""
        return range(self.world.rank, len(self.job.samples), self.world.size)

    @property
    def layers(self) -> Layers:
        """Forms and ranks as they were decided."""
        config = self.job.config
        if not self.state.layers:
            return self.job.layers
        return parse_layers(self.state.layers, config.layers, config.intermediate)

    def own(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """The one of these layers that this process decomposes and factors, if there are enough."""
        return layers[self.world.rank : self.world.rank + 1]

    def weight(self, name: str) -> torch.Tensor:
        """A weight of the source, on the device."""
        return self.job.reader.get(name).to(self.device)

    def writer(self) -> Writer:
        """The shards, on process 0; made when the ranks are decided.

        Raises:
            CheckpointError: a shard that was begun is not there any more.
        """
        if not self.world.first:
            raise CheckpointError("only process 0 writes the output")
        if self._writer is None:
            size, begun = self.job.recipe.shard_size, bool(self.state.tensors)
            self._writer = Writer(self.output, entries(self.job, self.layers), size, reopened=begun)
        return self._writer
