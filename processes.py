"""Several processes as torchrun starts them: who this one is, and the little that they tell each other."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

import config
import engine
import loading
import metrics
from utils import RunError, Stopped, StopSignal, choose_device, set_threads, usable_processors

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
    workers = loading.choose_workers(s.workers, device, who.local_world)
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


FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Cannot allocate memory")
LOST = re.compile(r"DataLoader worker \(pid|Too many open files")


@contextlib.contextmanager
def failures_told(batch_size: int, remedy: str = "") -> Iterator[None]:
    """Turn a full memory, and processes that read photographs and are killed, into one line. Raises RunError.

    remedy: what a smaller --batch-size takes.
    """
    try:
        with workers_told(StopSignal()):
            yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not FULL.search(str(error)):
            raise
        raise RunError(out_of_memory(batch_size, error) + remedy) from None


@contextlib.contextmanager
def workers_told(stop: StopSignal, go_on: str = "") -> Iterator[None]:
    """Turn a killed process that reads photographs into one line that ends in `go_on`. Raises RunError, or Stopped where
    `stop` noted a signal."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two: killed while it handed a batch over
        if isinstance(error, RuntimeError) and not LOST.search(str(error)):
            raise
        if stop.number:
            raise Stopped(stop.number, f"stopped{go_on}") from None
        last = [type(error).__name__, *str(error).strip().splitlines()][-1]  # one inside a worker comes with its traceback
        raise RunError(f"a process that reads photographs was lost ({last}); often the memory is short, or too few files may be "
                       f"open (ulimit -n): use fewer --workers{go_on}") from None  # fmt: skip


def out_of_memory(batch_size: int, error: Exception) -> str:
    """What the user needs to know when the GPU's or the machine's memory is full."""
    kind, peak, free = "", 0.0, 0.0
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        kind, peak, free = "GPU's ", float(torch.cuda.max_memory_allocated()), float(torch.cuda.mem_get_info()[0])
    else:
        peak, free = peak_memory(), free_memory()
    return (f"--batch-size {batch_size}: the {kind}memory is full (peak {peak / 2**30:.1f} GiB here, {free / 2**30:.1f} GiB "
            "free now); use a smaller one")  # fmt: skip


def peak_memory() -> float:
    """The most bytes that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows has none
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def free_memory() -> float:
    """Bytes of the machine's memory that programs can still have."""
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(told[1]) * 1024.0 if told else 0.0
    except OSError:
        names = getattr(os, "sysconf_names", {})
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if "SC_AVPHYS_PAGES" in names else 0.0


def leave(who: Processes) -> None:
    """Part from the others."""
    if who.world > 1 and dist.is_initialized():
        dist.destroy_process_group()
