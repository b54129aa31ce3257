"""One process or several under torchrun: who has which samples and matrices, and how results meet on process 0.

Every host must see the source at the same path. The output is written by process 0; the other processes keep their
hidden states under the same output path, on a shared or on their own disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from nxdi_svd_plugin.errors import SvdError

T = TypeVar("T")
DEVICES = ("cpu", "cuda")
"""Kinds of devices that compute in float64."""


@dataclass(frozen=True)
class World:
    """This process's place: rank of size. With size 1 nothing is communicated."""

    rank: int = 0
    size: int = 1
    owned: bool = False
    """Whether `join` made the process group, so that `leave` ends it."""

    @property
    def first(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` on process 0 and return its (picklable) result everywhere; its SvdError is raised everywhere."""
        outcome: list[tuple[T | None, SvdError | None]] = [(None, None)]
        if self.first:
            try:
                outcome = [(work(), None)]
            except SvdError as error:
                if self.size == 1:
                    raise
                outcome = [(None, error)]
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on every process."""
        if self.size == 1:
            return tensor
        summed = tensor.cpu()
        dist.all_reduce(summed)
        return summed.to(tensor.device)

    def all(self, value: T) -> list[T]:
        """Each process's value, in rank order, on every process."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def to_first(self, tensor: torch.Tensor | None, owner: int, like: torch.Tensor) -> torch.Tensor | None:
        """Bring the owner's tensor to process 0; `like` is an empty tensor of its shape and dtype."""
        if owner == 0 or self.size == 1:
            return tensor
        if self.rank == owner and tensor is not None:
            dist.send(tensor.contiguous().reshape(-1).view(torch.uint8), dst=0)
        elif self.first:
            received = torch.empty(like.shape, dtype=like.dtype)
            dist.recv(received.reshape(-1).view(torch.uint8), src=owner)
            return received
        return None


def join() -> World:
    """The world that torchrun announces in the environment (gloo), or a single process."""
    if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    owned = not dist.is_initialized()
    if owned:
        dist.init_process_group("gloo")
    return World(dist.get_rank(), dist.get_world_size(), owned)


def leave(world: World) -> None:
    """Wait for all processes and end the group that `join` made: a process that exits earlier can abort the others."""
    if world.owned:
        dist.barrier()
        dist.destroy_process_group()


def prints_results() -> bool:
    """Whether this process prints what a command returns: process 0 of torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def pick_device(name: str) -> torch.device:
    """The torch device for "auto" (a GPU where torch sees one, one per local process), or the named one.

    Raises:
        SvdError: no such device here, or one of another kind than a CPU and a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise SvdError(f"device {name!r} is not one to compress on; use --device auto, {' or '.join(DEVICES)}")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(torch.cuda.device_count(), 1))
        torch.empty(1, device=device)
    except SvdError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise SvdError(f"device {name!r} cannot be used ({reason}); use --device auto or cpu") from error
    return device
