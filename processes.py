"""Several processes as torchrun starts them: who this one is, and the little that they tell each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

import config
import dataset
import engine
import metrics
from utils import choose_device, set_threads, usable_processors

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a process may wait for another's whole epoch, or longer


@dataclass(frozen=True)
class Processes:
    """This process among all of the run. One alone is rank 0 of a world of 1."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def from_environment() -> Processes:
    """Who torchrun says this process is; it joins the others. Call `leave` at the end."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names) or os.environ["WORLD_SIZE"] == "1":
        return Processes()
    who = Processes(*(int(os.environ[name]) for name in names))
    if torch.cuda.is_available():
        torch.cuda.set_device(who.local_rank % torch.cuda.device_count())
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return who


def told_by_first(who: Processes, value: T) -> T:
    """The first process' value, in all of them."""
    if who.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def compute_for(s: config.MachineSettings, batch_size: int, who: Processes, shared: bool) -> engine.Compute:
    """Where and how this process computes. shared: whether the processes take part in the same batches.

    Raises UserError for a device that this machine lacks.
    """
    device = choose_device(s.device)
    if device.type == "cuda" and device.index is None and who.world > 1:
        device = torch.device("cuda", who.local_rank % torch.cuda.device_count())
    set_threads(s.threads or max(1, usable_processors() // who.local_world))
    workers = dataset.choose_workers(s.workers, device, who.local_world)
    together = (who.rank, who.world) if shared else (0, 1)
    return engine.Compute(device, engine.choose_precision(s.precision, device), workers, batch_size, *together)


def add_up(running: metrics.RunningLoss, model: nn.Module) -> None:
    """Sum the processes' counts of an epoch, and let all have the first one's BatchNorm statistics."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, running.kept())
    bad = [counts[4] for counts in everyone if counts[4] >= 0]
    sums = [sum(column) for column in zip(*everyone, strict=True)]
    running.sums.copy_(torch.tensor([*sums[:3], everyone[0][3], min(bad, default=-1.0)]))
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def leave(who: Processes) -> None:
    """Part from the others."""
    if who.world > 1 and dist.is_initialized():
        dist.destroy_process_group()
