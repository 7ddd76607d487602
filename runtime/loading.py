"""The worker processes that read batches ahead of the training."""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing.queues
import os
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset

from runtime.devices import (
    MORE_SHARED_MEMORY,
    SHARED_MEMORY,
    release_freed_memory,
    usable_processors,
)
from runtime.errors import RunError, is_rank_zero, reason, warn

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

PREFETCH_BATCHES = 4  # batches that each worker reads ahead, where a photograph has one view


class ViewedDataset(Protocol):
    """A dataset whose items have one tensor per view."""

    @property
    def views(self) -> Sequence[Any]: ...

    def __getitem__(self, key: Any) -> Any: ...


class Loader:
    """The batches of a DataLoader; leaving its `with` block ends the workers."""

    def __init__(self, batches: DataLoader[Any], batch_sampler: Any) -> None:
        self.batches: DataLoader[Any] | None = batches
        self.batch_sampler = batch_sampler
        self.started: Iterator[Any] | None = None
        self.has_workers = False

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        self.start()
        iterator, self.started = self.started, None
        assert iterator is not None
        return iterator

    def start(self) -> None:
        """Let the workers read ahead for the next iteration, in the sampler's present state."""
        if self.started is not None:
            return
        assert self.batches is not None, "read after its `with` block"
        if self.batches.num_workers and not self.has_workers:
            release_freed_memory()
            self.has_workers = True
        self.started = iter(self.batches)
        atexit.unregister(kill_workers)  # runs before what torch registers at each start
        atexit.register(kill_workers)
        # torch's handler raises wherever the program is, even while it saves. Without it, a dead
        # worker is noticed where its batch is waited for, within 5 seconds.
        with contextlib.suppress(AttributeError, ValueError):  # on Windows, outside the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        """torch ends the workers with the last reference to their iterator: frames that failed
        hold some. Later, the garbage collector would wait ten seconds for each worker.
        """
        traceback.clear_frames(trace)
        self.batches = self.started = None


def kill_workers() -> None:
    """Kill the workers that remain at exit: multiprocessing would wait for them, but they ignore
    its SIGTERM.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def prefetch_batches(views: int) -> int:
    """Batches that each worker reads ahead: fewer of many views, to bound an ensemble's memory."""
    return max(1, PREFETCH_BATCHES // views)


def raise_open_file_limit(workers: int, views: int) -> None:
    """Raise the limit of open files to what the workers' batches need: each tensor is a file on its
    way. Raises RunError where the system refuses, for torch would wait for ever.
    """
    if resource is None or not workers:
        return
    needed = 64 + workers * (8 + prefetch_batches(views) * (2 + views))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise RunError(
            f"--workers {workers}: about {needed} files will be open at once, the system allows "
            f"{hard}; use fewer --workers (0 needs none), or raise that limit (ulimit -n)"
        )
    if soft < needed and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def make_loader(photos: ViewedDataset, batches: Any, workers: int, device: torch.device) -> Loader:
    """A loader of the batches of a sampler, in their order."""
    raise_open_file_limit(workers, len(photos.views))
    loader: DataLoader[Any] = DataLoader(
        cast("Dataset[Any]", photos),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=prefetch_batches(len(photos.views)) if workers else None,
        generator=torch.Generator(),  # leaves torch's global one alone
        worker_init_fn=init_worker,
    )
    return Loader(loader, batches)


def init_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, and end where a batch cannot be sent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A private hook, for want of a public one: the queue's thread would drop the batch, and the
    # main process wait for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(exit_worker)  # type: ignore[attr-defined]


def exit_worker(error: BaseException, batch: object) -> None:
    """End a worker that could not send a batch."""
    warn(f"a process that reads photographs cannot send them: {reason(error)}")
    os._exit(1)


def choose_workers(asked: int | None, device: torch.device, sharing: int = 1) -> int:
    """Worker processes: as asked; else two beside a CPU, beside an accelerator every processor but
    one (at most 16). sharing: processes like this one on the machine.
    """
    if asked is not None:
        return asked
    processors = max(1, usable_processors() // sharing)
    return min(2, processors) if device.type == "cpu" else min(16, max(1, processors - 1))


def workers_that_fit_shared_memory(
    workers: int, batch_size: int, side: int, views: int = 1, sharing: int = 1
) -> int:
    """As many of the workers as shared memory has room for; a warning where those are fewer.

    It holds all that they read ahead, the batch that is computed and the one after it.
    side: of a view in pixels; sharing: loaders like this one on the machine.
    """
    batch, free = batch_size * views * side * side * 3 * sharing, free_shared_memory()
    fitting = max(0, min(workers, int(min(free / batch, 1e9) - 2) // prefetch_batches(views)))
    if fitting < workers and is_rank_zero():
        needed = (workers * prefetch_batches(views) + 2) * batch
        warn(
            f"--workers {fitting} instead of {workers}: {SHARED_MEMORY} has {free / 2**20:.0f} MiB "
            f"free, their batches take {needed / 2**20:.0f} MiB; ways on: {MORE_SHARED_MEMORY}"
        )
    return fitting


def free_shared_memory() -> float:
    """Free bytes of the folder in which processes hand over batches; infinite where none is."""
    try:
        return float(shutil.disk_usage(SHARED_MEMORY).free)
    except OSError:
        return math.inf
