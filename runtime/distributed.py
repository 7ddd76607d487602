"""Several processes, as torchrun starts them: joining, waiting for each other, lost ones."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from runtime.cli import StopSignal, handle_stop_signals
from runtime.devices import MORE_SHARED_MEMORY, SHARED_MEMORY, free_memory, peak_memory
from runtime.errors import (
    CliError,
    DistInfo,
    RunError,
    Stopped,
    UserError,
    dist_info_from_environment,
    reason,
)

T = TypeVar("T")
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to come together
COLLECTIVE_TIMEOUT = timedelta(days=7)  # one process may wait for another's whole epoch
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Cannot allocate memory"
)
LOST_WORKER = re.compile(r"DataLoader worker \(pid|Too many open files|shared memory|</torch_")
LOST_RANK = re.compile(r"gloo|NCCL|Connection (reset|closed)|TCPStore|Broken pipe")


def init_distributed() -> DistInfo:
    """This process among those that torchrun started, which it joins."""
    info = dist_info_from_environment()
    if info.world == 1:
        return info
    if torch.cuda.is_available() and info.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(info.local_rank)
    if not dist.is_initialized():
        join_group(info.world)
    return info


def join_group(world: int) -> None:
    """Wait for the other processes. Raises RunError where some of them do not come."""
    try:
        # the default ends the program at once; Python's handlers wait for the system call to end
        with handle_stop_signals(signal.SIG_DFL):
            store, rank, world = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
            store.set(f"came/{rank}", "")
            store.wait([f"came/{number}" for number in range(world)], JOIN_TIMEOUT)
            store.set_timeout(COLLECTIVE_TIMEOUT)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT
            )
    except (RuntimeError, ValueError) as error:
        address, port = (os.environ.get(name, "not set") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            f"the processes of this run did not come together ({reason(error)}); check "
            f"MASTER_ADDR ({address}), MASTER_PORT ({port}) and that all {world} processes "
            "(WORLD_SIZE) were started"
        ) from None


@contextlib.contextmanager
def distributed() -> Iterator[DistInfo]:
    """This process among those that torchrun started; at the end it leaves the others."""
    info = init_distributed()
    try:
        yield info
    finally:
        if info.world > 1 and dist.is_initialized():
            time.sleep(0.1)  # a thread of torch 2.6 may still hold the last exchange's tensor
            dist.destroy_process_group()


def on_all_ranks(info: DistInfo, work: Callable[[], T]) -> T:
    """The result of `work` here, once it is done in all processes. Where it fails in some, the
    first of them raises that, and the others exit silently with its code.
    """
    if info.world == 1:
        return work()
    value: T | None = None
    error: CliError | OSError | None = None
    try:
        value = work()
    except (CliError, OSError) as refused:
        error = refused
    codes = [0] * info.world
    dist.all_gather_object(codes, 0 if error is None else getattr(error, "code", 1))
    failed = [rank for rank, code in enumerate(codes) if code]
    if error is not None and info.rank == failed[0]:
        raise error
    if failed:
        raise SystemExit(codes[failed[0]])
    return cast("T", value)


def broadcast_from_rank0(info: DistInfo, work: Callable[[], T]) -> T:
    """The result of `work`, done by the first process alone, in all of them. Failures end all, as
    in `on_all_ranks`.
    """
    box = [on_all_ranks(info, work if info.is_rank0 else lambda: cast("T", None))]
    if info.world > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the first one's BatchNorm statistics."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


@contextlib.contextmanager
def explain_failures(
    batch_size: int, remedy: str = "", go_on: str = "; start it again"
) -> Iterator[None]:
    """Turn a full memory, a missing compiler and lost processes into one line. Raises RunError, or
    UserError for --compile.

    remedy: what a smaller --batch-size takes; go_on: what to do after a process was lost.
    """
    try:
        with explain_lost_processes(StopSignal(), go_on):
            yield
    except (MemoryError, RuntimeError) as error:
        if is_compile_error(error):
            raise UserError(
                f"--compile: the network cannot be compiled here ({reason(error)}); leave "
                "--compile out"
            ) from None
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise RunError(out_of_memory(batch_size, error) + remedy) from None


@contextlib.contextmanager
def explain_lost_processes(stop: StopSignal, go_on: str = "") -> Iterator[None]:
    """Turn a lost process, a loader's or another of torchrun's, into one line that ends in `go_on`.
    Raises RunError, or Stopped where `stop` noted a signal.
    """
    try:
        yield
    # ConnectionError, EOFError: a worker was killed while it handed a batch over
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        in_worker = text.startswith("Caught ")  # it comes with the worker's traceback
        lost_rank = False
        if isinstance(error, RuntimeError):
            lost_rank = dist.is_initialized() and LOST_RANK.search(text) is not None
            lost = lost_rank or LOST_WORKER.search(text)
            if not lost or OUT_OF_MEMORY.search(text):
                raise
        elif (
            isinstance(error, OSError) and not in_worker and not isinstance(error, ConnectionError)
        ):
            raise
        if stop.number:
            raise Stopped(stop.number, f"stopped{go_on}") from None
        last_line = [type(error).__name__, *text.strip().splitlines()][-1]
        if lost_rank:
            problem = "another process of this run ended; its message tells why"
        elif isinstance(error, OSError) and in_worker:
            problem = f"a process that reads photographs failed ({last_line}); mend that"
        else:
            problem = (
                f"a process that reads photographs was lost ({last_line}); often the memory or "
                f"{SHARED_MEMORY} is full, or too few files may be open (ulimit -n): use fewer "
                f"--workers, {MORE_SHARED_MEMORY}"
            )
        raise RunError(f"{problem}{go_on}") from None


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile failed: no compiler, or something it cannot translate."""
    dynamo = sys.modules.get("torch._dynamo.exc")  # importing it takes seconds
    if dynamo is None or OUT_OF_MEMORY.search(str(error)):
        return False
    return isinstance(error, dynamo.TorchDynamoException)


def out_of_memory(batch_size: int, error: Exception) -> str:
    """The message where the GPU's or the machine's memory is full."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        memory = "GPU's memory"
        peak, free = float(torch.cuda.max_memory_allocated()), float(torch.cuda.mem_get_info()[0])
    else:
        memory, peak, free = "memory", peak_memory(), free_memory()
    return (
        f"--batch-size {batch_size}: the {memory} is full (peak {peak / 2**30:.1f} GiB here, "
        f"{free / 2**30:.1f} GiB free now); use a smaller one"
    )
