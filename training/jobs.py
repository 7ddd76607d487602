"""Folds side by side: each in a process of its own, which one starts for all of them."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import engine
from runtime import cli, distributed, errors, loading
from runtime.errors import DistInfo, Stopped
from training.run import RunContext

EXIT_SECONDS = 60.0  # for a process to save its state when it is stopped
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h

Work = Callable[[RunContext, cli.StopSignal], int]


@contextlib.contextmanager
def start(context: RunContext, work: Work, stop: cli.StopSignal) -> Iterator[list[BaseProcess]]:
    """Processes that do their share of the work beside this one. Those that run at the end of the
    block are stopped as by SIGTERM, and waited for.
    """
    # forked, a process need not read the data again; a GPU's would not work
    method = "fork" if context.compute.device.type == "cpu" and hasattr(os, "fork") else "spawn"
    own: Any = multiprocessing.get_context(method)
    processes: list[BaseProcess] = [
        own.Process(target=run_share, args=(context.share(rank), work, os.getpid(), cli.quiet))
        for rank in range(1, context.jobs)
    ]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(EXIT_SECONDS)
            process.kill()


def run_share(context: RunContext, work: Work, parent: int, quiet: bool) -> None:
    """A process of its own: its share of the work, then its exit code."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has neither
        os.setsid()  # Ctrl-C reaches the parent alone, which passes it on
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # Linux: end with the parent
        if os.getppid() != parent:
            os._exit(1)
    dist = context.dist
    os.environ.update(RANK=str(dist.rank), WORLD_SIZE=str(dist.world))
    os.environ.update(LOCAL_RANK=str(dist.local_rank), LOCAL_WORLD_SIZE=str(dist.local_world))
    cli.quiet = quiet
    cli.print_over_bars()
    if context.compute.device.type == "cuda":
        engine.select_gpu(context.compute.device, DistInfo())
    stop = cli.StopSignal()

    def main(argv: list[str] | None) -> int:
        with cli.handle_stop_signals(stop), distributed.explain_failures(context.optim.batch_size):
            return work(context, stop)

    code = cli.run_script(main, "train.py")
    loading.kill_workers()
    raise SystemExit(code)


def wait(processes: Sequence[BaseProcess], stop: cli.StopSignal) -> None:
    """Wait until all have ended. Raises Stopped where a signal comes first."""
    while any(process.is_alive() for process in processes):
        if stop.number:
            raise Stopped(stop.number, f"stopped; {errors.retry_remedy}")
        time.sleep(0.1)
