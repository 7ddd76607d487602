"""The processes that read batches ahead of the training: how many, started, watched and ended."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

import dataset
from runtime.devices import MORE_SHARED_MEMORY, SHARED_MEMORY, usable_processors
from runtime.errors import RunError, is_rank_zero, reason, warn

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

PREFETCH_BATCHES = 4  # batches that each worker reads ahead, where a photograph has one view


class Loader(DataLoader[Any]):
    """A DataLoader whose dead workers are noticed while their batch is waited for (within 5
    seconds), and then alone: torch's own signal handler would raise wherever the program is, in the
    middle of saving or of reporting the cause. `with` ends its workers.
    """

    workers: frozenset[BaseProcess] = frozenset()

    def __iter__(self) -> Any:
        others = frozenset(multiprocessing.active_children())
        batches = super().__iter__()
        self.workers |= frozenset(multiprocessing.active_children()) - others
        if self.workers and threading.current_thread() is threading.main_thread():
            atexit.unregister(kill_workers)  # once, and before multiprocessing's own
            atexit.register(kill_workers, multiprocessing.active_children)
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *failure: object) -> None:
        # torch would end them when the loader is deleted; a failure's traceback keeps it alive
        kill_workers(lambda: self.workers)


def prefetch_batches(views: int) -> int:
    """Batches that each worker reads ahead: fewer of many views, or an ensemble's memory would grow
    with its members.
    """
    return max(1, PREFETCH_BATCHES // views)


def raise_open_file_limit(workers: int, views: int) -> None:
    """Raise the limit of open files to what batches of so many views need: each tensor is a file on
    its way from a worker.

    Raises RunError where the system does not allow that; torch would wait for ever.
    """
    if resource is None or not workers:
        return
    needed = 64 + workers * (8 + prefetch_batches(views) * (2 + views))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise RunError(
            f"--workers {workers}: about {needed} files will be open at once, the system allows "
            f"{hard}; "
            "use fewer --workers (0 needs none), or raise that limit (ulimit -n)"
        )
    if soft < needed and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def make_loader(
    photos: dataset.ImageDataset,
    batches: dataset.EpochBatchSampler,
    workers: int,
    device: torch.device,
) -> Loader:
    """A DataLoader over those batches, in their order; `with` ends its workers. Its own generator
    spares torch's global one.
    """
    raise_open_file_limit(workers, len(photos.views))
    return Loader(
        photos,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=prefetch_batches(len(photos.views)) if workers else None,
        generator=torch.Generator(),
        worker_init_fn=init_worker,
    )


def kill_workers(processes: Callable[[], Iterable[BaseProcess]]) -> None:
    """Kill those of the processes that read images: they ignore the SIGTERM by which
    multiprocessing would end them at the program's end, and it would wait for them for ever.
    """
    for process in processes():
        if process.daemon:
            process.kill()


def init_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach workers too; how to stop is for the main process to say. A batch
    that cannot be sent ends the worker, or the main process would wait for it for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(exit_worker)  # type: ignore[attr-defined]


def exit_worker(error: BaseException, batch: object) -> None:
    """End a worker that could not send a batch."""
    warn(f"a process that reads photographs cannot send them: {reason(error)}")
    os._exit(1)


def choose_workers(asked: int | None, device: torch.device, sharing: int = 1) -> int:
    """Worker processes: as asked; else every processor but one beside an accelerator (at most 16),
    two beside a CPU.

    sharing: processes like this one that share the machine's processors.
    """
    if asked is not None:
        return asked
    processors = max(1, usable_processors() // sharing)
    return min(16, max(1, processors - 1)) if device.type != "cpu" else min(2, processors)


def workers_that_fit_shared_memory(
    workers: int, batch_size: int, side: int, views: int = 1, sharing: int = 1
) -> int:
    """As many of the worker processes as shared memory has room for; where those are fewer, a line
    says so.

    All that they read ahead lies there, beside the batch that is computed and the one after it.
    side: of a photograph's views in pixels; sharing: processes like this one on this machine.
    """
    batch, free = batch_size * views * side * side * 3, free_shared_memory() / sharing
    able = max(0, min(workers, int(min(free / batch, 1e9) - 2) // prefetch_batches(views)))
    if able < workers and is_rank_zero():
        needed = (workers * prefetch_batches(views) + 2) * batch * sharing
        warn(
            f"--workers {able} instead of {workers}: {SHARED_MEMORY} has "
            f"{free * sharing / 2**20:.0f} "
            "MiB free, their batches take "
            f"{needed / 2**20:.0f} MiB; ways on: {MORE_SHARED_MEMORY}"
        )
    return able


def free_shared_memory() -> float:
    """Bytes that processes can still hand over at once; infinite where no folder of the system
    bounds them.
    """
    try:
        return float(shutil.disk_usage(SHARED_MEMORY).free)
    except OSError:
        return math.inf
